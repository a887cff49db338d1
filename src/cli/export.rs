use std::path::PathBuf;

use anyhow::Result;
use engine::device::Device;
use engine::models::load_network;
use engine::models::lora::{Slot, merge};
use engine::telemetry::say;
use engine::train::checkpoint;
use engine::train::run::export_lora;
use engine::train::state::{checkpoint_config, saved_average};

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
    device.run(move || export(&args))
}

fn export(args: &Args) -> Result<()> {
    let saved = checkpoint::load(&checkpoint::find(&args.checkpoint)?)?;
    let config = checkpoint_config(&saved)?;
    let network = load_network(&config.model.join("transformer"), &Device::Cpu, None)?;
    let modules = network.modules();
    let bank = saved_average(&saved, &config, modules, &Device::Cpu)?;
    match args.format {
        Format::Diffusers => export_lora(&*network, &bank, Slot::Average, &config.lora, &args.out)?,
        Format::Merged => merge::pipeline(&config.model, modules, &bank, Slot::Average, &args.out)?,
    }
    say(&format!("wrote {}", args.out.display()));
    Ok(())
}
