use std::path::PathBuf;

use anyhow::Result;
use engine::device::Device;
use engine::models::load_network;
use engine::models::lora::{Module, Slot, merge};
use engine::models::source::{Model, Source};
use engine::telemetry::say;
use engine::train::checkpoint;
use engine::train::run::export_lora;
use engine::train::state::{checkpoint_config, modules_of, saved_average};

use super::DeviceArg;

/// Export what a run has learnt for use elsewhere.
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint, or the output folder of a run for its latest.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// diffusers: a LoRA for load_lora_weights. merged: a whole model folder with the LoRA in its weights.
    #[arg(long, value_enum, default_value = "diffusers")]
    format: Format,
    /// Model folder for merged, if it is no longer where the run had it.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Diffusers,
    Merged,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    // What is written is what is read, put together: nothing for a GPU.
    device.on_cpu(move || export(&args))
}

fn export(args: &Args) -> Result<()> {
    let saved = checkpoint::load(&checkpoint::find(&args.checkpoint)?)?;
    let config = checkpoint_config(&saved)?;
    let average = |modules: &[Module]| saved_average(&saved, &config, modules, &Device::Cpu);
    match args.format {
        Format::Diffusers => {
            // The checkpoint says all that is needed of the model.
            let modules = modules_of(&saved);
            export_lora(&modules, &average(&modules)?, Slot::Average, &config.lora, &args.out)?;
        }
        Format::Merged => {
            let source = args.model.as_ref().map(|model| Source { model: model.clone(), ..Source::default() });
            let model = Model::open(&source.unwrap_or_else(|| config.source()))?;
            let network = load_network(model.component("transformer")?, &Device::Cpu, None)?;
            let modules = network.modules();
            merge::pipeline(&model, modules, &average(modules)?, Slot::Average, &args.out)?;
        }
    }
    say(&format!("wrote {}", args.out.display()));
    Ok(())
}
