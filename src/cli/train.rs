use std::path::PathBuf;

use anyhow::{Context, Result};
use engine::config::{self, Job};
use engine::device::Device;
use engine::device::gpu::Chip;
use engine::predict::report;
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
    /// Print all that is known of every epoch, such as the seconds of its phases; else what fits the terminal. The rest is in
    /// metrics.jsonl.
    #[arg(long)]
    verbose: bool,
    /// What an hour of a GPU costs, for the prediction of --dry-run --device plan:CHIP.
    #[arg(long, default_value_t = 2.5, value_name = "USD", value_parser = price)]
    usd_per_hour: f64,
    #[command(flatten)]
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    match device.planned().filter(|_| args.dry_run) {
        Some(chip) => device.on_cpu(|| predict(&args, chip)),
        None => device.run(move |device| start(&args, device)),
    }
}

/// The value of `--usd-per-hour`.
fn price(text: &str) -> Result<f64, String> {
    let price = text.parse().ok().filter(|usd: &f64| usd.is_finite() && *usd >= 0.0);
    price.ok_or_else(|| "expected a number of US dollars".into())
}

/// Memory and time of a run on a chip that is not there.
fn predict(args: &Args, chip: &Chip) -> Result<()> {
    let mut raw = config::load(&args.config, &args.set)?;
    let shown = args.config.display().to_string();
    let stand_ins = setup::stand_in(&mut raw);
    let mut planned = setup::check(raw, Job::Train).with_context(|| shown.clone())?;
    stand_ins.into_iter().chain(planned.outline_missing()?).for_each(|line| say(&line));
    say(planned.config.describe().trim_end());
    let device = Device::planned(chip)?;
    let plan = MemoryPlan::fitting(&mut planned, &device).with_context(|| shown.clone())?;
    say("memory (planned, not measured):");
    say(plan.table().trim_end());
    say(report::epoch(&plan.epoch, &planned.config, chip, args.usd_per_hour).trim_end());
    plan.check(&planned, &device).context(shown)
}

fn start(args: &Args, device: &Device) -> Result<()> {
    let raw = config::load(&args.config, &args.set)?;
    let shown = args.config.display().to_string();
    let mut planned = setup::check(raw, Job::Train).with_context(|| shown.clone())?;
    let name = args.config.file_stem().unwrap_or_default();
    let output = args.output_dir.clone().unwrap_or_else(|| PathBuf::from("outputs").join(name));
    let resume = match args.resume.as_str() {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(PathBuf::from(path)),
    };
    say(&format!("{shown} -> {}", output.display()));
    say(planned.config.describe().trim_end());
    let memory = MemoryPlan::fitting(&mut planned, device).with_context(|| shown.clone())?;
    say("memory:");
    say(memory.table().trim_end());
    memory.check(&planned, device).context(shown)?;
    if args.dry_run {
        return Ok(());
    }
    if let Outcome::Interrupted(epoch, by) = train(planned, &output, &resume, args.verbose, device)? {
        say(&format!("interrupted after epoch {epoch}; everything is saved, the same command resumes"));
        return Err(by.into());
    }
    Ok(())
}
