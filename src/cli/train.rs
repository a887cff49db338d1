use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::config::{Job, Place, Resolved, origins};
use engine::device::Device;
use engine::device::gpu::Chip;
use engine::io::output_folder;
use engine::predict::report::Prediction;
use engine::telemetry::say;
use engine::train::plan::MemoryPlan;
use engine::train::rehearse::{self, Stage};
use engine::train::run::{Outcome, Resume, run as train};
use engine::train::setup;
use serde::Serialize;

use super::DeviceArg;
use super::json::{self, JsonArg};

/// Train a LoRA so that rewards rise.
///
/// Everything goes to the output folder: config.toml, metrics.jsonl, report.html (a page about the run), tensorboard/, samples/,
/// checkpoints/, best/ with the LoRA of the best evaluation so far and, at the end, lora/ with the last one, both for
/// diffusers. The same command again resumes where the last run stopped.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS), group(clap::ArgGroup::new("look").args(["dry_run", "rehearse"])), mut_arg("json", |arg| arg.requires("look")))]
pub struct Args {
    /// Training config: a file, or the name of a published one (engine configs lists them).
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
    /// Take a group or a few through every stage (rollout, every reward, update, checkpoint, evaluation, export) in a temporary folder,
    /// report the time and memory of each, and stop: what would fail after hours fails now.
    #[arg(long)]
    rehearse: bool,
    /// Print all that is known of every epoch, such as the seconds of its phases; else what fits the terminal. The rest is in
    /// metrics.jsonl.
    #[arg(long)]
    verbose: bool,
    /// What an hour of a GPU costs, for the prediction of --dry-run --device plan:CHIP.
    #[arg(long, default_value_t = 2.5, value_name = "USD", value_parser = price)]
    usd_per_hour: f64,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("config", "the config"),
    ("output", "folder that the run would write to"),
    ("device", "cpu, or which GPU"),
    ("images_per_epoch", "prompts times images per prompt"),
    ("points_per_epoch", "training points"),
    ("images_per_evaluation", "of held-out prompts"),
    ("resolution", "height and width of an image in pixels"),
    ("memory.total", "bytes at the highest moment"),
    ("memory.available", "bytes the device has"),
    ("memory.weights", "bytes"),
    ("memory.state", "adapters, moments, embeddings: bytes"),
    ("memory.overhead", "kernels and graphs on a GPU: bytes"),
    ("memory.phases", "the highest moment of each phase: bytes"),
    ("stand_ins", "plan: what was not there, and what stood in for it"),
    ("stages", "--rehearse: name, seconds, images, bytes at most"),
    ("prediction.chip", "plan: the GPU"),
    ("prediction.seconds_per_epoch", "predicted, as all below"),
    ("prediction.images_per_second", "sampled, judged and trained on"),
    ("prediction.usd_per_epoch", "at prediction.usd_per_hour"),
    ("prediction.usd_per_hour", "of --usd-per-hour"),
    ("prediction.rollout_ms_per_row", "transformer, when images are sampled"),
    ("prediction.update_ms_per_point", "forward and backward"),
    ("prediction.phase_seconds", "by phase"),
    ("prediction.shares", "of the time: products, attention, convolutions, rest; 0 to 1"),
    ("prediction.flops", "of products in an epoch"),
    ("prediction.share_of_peak", "of what the GPU could multiply in that time, 0 to 1"),
    ("prediction.launches", "of kernels in an epoch"),
];

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

/// What --dry-run finds.
#[derive(Serialize)]
struct DryRun {
    config: String,
    output: PathBuf,
    device: String,
    images_per_epoch: usize,
    points_per_epoch: usize,
    images_per_evaluation: usize,
    resolution: usize,
    memory: Memory,
    stand_ins: Vec<String>,
    prediction: Option<Prediction>,
}

/// A memory plan in bytes.
#[derive(Serialize)]
struct Memory {
    total: u64,
    available: Option<u64>,
    weights: u64,
    state: u64,
    overhead: u64,
    phases: BTreeMap<String, u64>,
}

impl DryRun {
    fn new(args: &Args, place: &Place, config: &Resolved, plan: &MemoryPlan, device: &Device) -> Result<Self> {
        Ok(Self {
            config: place.to_string(),
            output: output(args, place),
            device: if let Device::Gpu(gpu) = device { format!("{gpu:?}") } else { "cpu".into() },
            images_per_epoch: config.images,
            points_per_epoch: config.points,
            images_per_evaluation: config.eval_images,
            resolution: config.resolution,
            memory: Memory {
                total: plan.total(),
                available: device.free_memory()?,
                weights: plan.weights.iter().map(|row| row.bytes).sum(),
                state: plan.state.bytes,
                overhead: plan.overhead,
                phases: plan.phases.iter().map(|row| (row.what.clone(), row.bytes)).collect(),
            },
            stand_ins: Vec::new(),
            prediction: None,
        })
    }
}

/// The folder for everything the run writes.
fn output(args: &Args, place: &Place) -> PathBuf {
    args.output_dir.clone().unwrap_or_else(|| PathBuf::from("outputs").join(place.name()))
}

/// Memory and time of a run on a chip that is not there.
fn predict(args: &Args, chip: &Chip) -> Result<()> {
    let place = Place::find(&args.config)?;
    let mut raw = place.load(&args.set)?;
    let shown = place.to_string();
    let mut stand_ins = setup::stand_in(&mut raw);
    let mut planned = setup::check(raw, Job::Train).with_context(|| shown.clone())?;
    stand_ins.extend(planned.outline_missing()?);
    stand_ins.iter().for_each(|line| say(line));
    say(planned.config.describe().trim_end());
    let device = Device::planned(chip)?;
    let plan = MemoryPlan::fitting(&mut planned, &device).with_context(|| shown.clone())?;
    say("memory (planned, not measured):");
    say(plan.table().trim_end());
    let prediction = Prediction::of(&plan.epoch, &planned.config, chip, args.usd_per_hour);
    say(prediction.to_string().trim_end());
    plan.check(&planned, &device).context(shown)?;
    let found = DryRun::new(args, &place, &planned.config, &plan, &device)?;
    args.json.answer(&DryRun { stand_ins, prediction: Some(prediction), ..found }, String::new)
}

/// What --rehearse finds.
#[derive(Serialize)]
struct Rehearsal<'a> {
    stages: &'a [Stage],
}

/// Rehearses the run `whole` beside where `output` will be, so that it fails there if the run would.
fn rehearsal(whole: &Resolved, output: &Path, device: &Device) -> Result<Vec<Stage>> {
    let folder = output.with_extension("rehearsal");
    output_folder(&folder)?;
    let stages = rehearse::shortened(whole).and_then(|planned| rehearse::rehearse(planned, &folder, device));
    let _ = std::fs::remove_dir_all(&folder);
    stages
}

fn start(args: &Args, device: &Device) -> Result<()> {
    let place = Place::find(&args.config)?;
    let raw = place.load(&args.set)?;
    let shown = place.to_string();
    origins::check(&raw).with_context(|| shown.clone())?;
    let mut planned = setup::check(raw, Job::Train).with_context(|| shown.clone())?;
    let output = output(args, &place);
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
        return args.json.answer(&DryRun::new(args, &place, &planned.config, &memory, device)?, String::new);
    }
    if args.rehearse {
        let stages = rehearsal(&planned.config, &output, device)?;
        return args
            .json
            .answer(&Rehearsal { stages: &stages }, || format!("rehearsed:\n{}", rehearse::table(&stages)));
    }
    if let Outcome::Interrupted(epoch, by) = train(planned, &output, &resume, args.verbose, device)? {
        say(&format!("interrupted after epoch {epoch}; everything is saved, the same command resumes"));
        return Err(by.into());
    }
    Ok(())
}
