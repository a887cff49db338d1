use std::path::PathBuf;

use anyhow::Result;
use engine::io::merge;
use engine::models::mmdit::Mmdit;
use engine::train::state::{checkpoint_config, saved_average};
use engine::train::{checkpoint, export_lora};

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
    let model = Mmdit::load(&config.model.join("transformer"))?;
    let adapter = saved_average(&saved, &config, model.modules())?;
    match args.format {
        Format::Diffusers => export_lora(&model, &adapter, &config.lora, &args.out)?,
        Format::Merged => merge::pipeline(&config.model, model.modules(), &adapter, &args.out)?,
    }
    println!("wrote {}", args.out.display());
    Ok(())
}
