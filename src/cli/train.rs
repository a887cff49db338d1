use std::path::PathBuf;

use anyhow::{Context, Result};
use engine::config::{self, Job};
use engine::device::Device;
use engine::telemetry::say;
use engine::train::plan::MemoryPlan;
use engine::train::run::{Outcome, Resume, run as train};
use engine::train::setup;

use super::DeviceArg;

/// Train a LoRA so that rewards rise.
///
/// Everything goes to the output folder: config.toml, metrics.jsonl, tensorboard/, samples/, checkpoints/ and, at the
/// end, lora/ for diffusers. The same command again resumes where the last run stopped.
#[derive(clap::Args)]
pub struct Args {
    /// Training config.
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Override keys of the config.
    #[arg(long, value_name = "KEY.PATH=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Folder for everything the run writes; outputs/<config name> if left out.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// auto: from the latest checkpoint in the output folder if there is one; never; or a checkpoint folder.
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: String,
    /// Check the config, print the derived sizes and the memory plan, and stop.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move |device| start(&args, device))
}

fn start(args: &Args, device: &Device) -> Result<()> {
    let raw = config::load(&args.config, &args.set)?;
    let shown = args.config.display().to_string();
    let planned = setup::check(raw, Job::Train).with_context(|| shown.clone())?;
    let name = args.config.file_stem().unwrap_or_default();
    let output = args.output_dir.clone().unwrap_or_else(|| PathBuf::from("outputs").join(name));
    let resume = match args.resume.as_str() {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(PathBuf::from(path)),
    };
    say(&format!("{shown} -> {}", output.display()));
    say(planned.config.describe().trim_end());
    let memory = MemoryPlan::of(&planned, device).with_context(|| shown.clone())?;
    say("memory:");
    say(memory.table().trim_end());
    memory.check(&planned, device).context(shown)?;
    if args.dry_run {
        return Ok(());
    }
    if let Outcome::Interrupted(epoch, by) = train(planned, &output, &resume, device)? {
        say(&format!("interrupted after epoch {epoch}; everything is saved, the same command resumes"));
        return Err(by.into());
    }
    Ok(())
}
