use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use engine::config::reward::RewardKeys;
use engine::config::{self, Job, TrainConfig, origins};
use engine::device::Device;
use engine::io::{built_in, image, output_folder, write_atomic};
use engine::models::lora::file::{LoraFile, TRANSFORMER};
use engine::models::lora::{AdapterBank, Slot};
use engine::telemetry::{say, warn};
use engine::train::checkpoint;
use engine::train::guard::Interrupt;
use engine::train::plan::MemoryPlan;
use engine::train::report::means;
use engine::train::setup::{Setup, check, evaluation_config};
use engine::train::state::{checkpoint_config, saved_average};
use serde::Serialize;
use serde_json::json;

use super::json::{self, JsonArg};
use super::{DeviceArg, PartArgs, sequence_length};

/// Sample held-out prompts and print the mean rewards as lines `RESULT key=value`.
///
/// With --checkpoint, model and settings come from the config the checkpoint was trained with.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["checkpoint", "model"])))]
pub struct Args {
    /// A checkpoint, or the output folder of a run for its latest; its averaged adapter is evaluated.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Model: a folder in the layout of diffusers, or a checkpoint of one file; with --checkpoint, if it is no longer where
    /// the run had it.
    #[arg(long, value_name = "DIR|FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartArgs,
    /// LoRA to evaluate on --model.
    #[arg(long, value_name = "PATH", requires = "model", conflicts_with = "checkpoint")]
    lora: Option<PathBuf>,
    /// Prompts: .txt or .jsonl.
    #[arg(long, value_name = "FILE", required_unless_present = "drawbench", conflicts_with = "drawbench")]
    prompts: Option<PathBuf>,
    /// The prompts of DrawBench, in data/drawbench/test.txt.
    #[arg(long)]
    drawbench: bool,
    /// Rewards, each with an optional weight.
    #[arg(long, value_name = "NAME[=WEIGHT]", required = true, num_args = 1..)]
    rewards: Vec<String>,
    /// Folder of a reward's model.
    #[arg(long, value_name = "NAME=DIR")]
    reward_model: Vec<String>,
    /// Another key of a reward, as a config's table [rewards.NAME] has it.
    #[arg(long = "set", value_name = "reward_models.NAME.KEY=VALUE", num_args = 1..)]
    overrides: Vec<String>,
    /// Use only the first prompts.
    #[arg(long, value_name = "N")]
    num_prompts: Option<usize>,
    /// Images per prompt.
    #[arg(long, value_name = "N")]
    images_per_prompt: Option<usize>,
    /// Euler steps.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Classifier-free guidance scale.
    #[arg(long, value_name = "G")]
    guidance: Option<f32>,
    /// Seed of the noise.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// T5 tokens per prompt.
    #[arg(long, value_name = "N", value_parser = sequence_length)]
    max_sequence_length: Option<usize>,
    /// Height and width in pixels.
    #[arg(long, value_name = "PIXELS")]
    resolution: Option<usize>,
    /// Images that are sampled together; changes memory and speed, not results.
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Also write the images here, and the results as results.json.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("images", "how many"),
    ("missing", "pictures without a score, if any: the means are over the others"),
    ("results.reward", "mean of the weighted sum of rewards"),
    ("results.reward_stderr", "its standard error over prompts"),
    ("results.*", "mean of each reward, and after a dot of what it reports besides"),
    ("out", "folder with the images"),
];

/// What --json gives.
#[derive(Serialize)]
struct Answer<'a> {
    images: usize,
    missing: Option<usize>,
    results: &'a BTreeMap<String, f64>,
    out: Option<&'a Path>,
}

/// Where published runs keep DrawBench (Saharia et al. 2022): 200 prompts, five times each.
const DRAWBENCH: &str = "data/drawbench/test.txt";

pub fn run(mut args: Args) -> Result<()> {
    match &mut args.prompts {
        Some(prompts) => built_in::stand_in(prompts, "--prompts").iter().for_each(|line| say(line)),
        None => {
            origins::check_path("--drawbench", Path::new(DRAWBENCH))?;
            args.prompts = Some(DRAWBENCH.into());
        }
    }
    let device = args.device.clone();
    device.run(move |device| evaluate(&args, device))
}

fn evaluate(args: &Args, device: &Device) -> Result<()> {
    let (mut setup, bank) = prepare(args, device)?;
    if let Some(out) = &args.out {
        output_folder(out)?;
    }
    let report = setup.evaluate(bank.as_ref().map(|(bank, slot)| (bank, *slot)), &Interrupt::install()?)?;
    let mut results = means(&report.scores);
    results.insert(
        "reward_stderr".into(),
        standard_error(&report.scores.weighted, setup.config.raw.eval.num_images_per_prompt),
    );
    // Files first: whoever reads the lines may have gone.
    if let Some(out) = &args.out {
        for (i, picture) in report.images.iter().enumerate() {
            image::write_png(&out.join(format!("{i}.png")), picture)?;
        }
        write_atomic(&out.join("results.json"), format!("{:#}\n", json!(results)).as_bytes())?;
    }
    let missing = report.missing().map(|(missing, why)| {
        warn(&format!("{missing} of {} pictures have no score: {why}", report.images.len()));
        missing
    });
    let answer = Answer { images: report.images.len(), missing, results: &results, out: args.out.as_deref() };
    args.json.answer(&answer, || {
        let lines = results.iter().map(|(key, value)| format!("RESULT {key}={value:.6}\n"));
        let missing = missing.map(|missing| format!("RESULT missing={missing}\n")).unwrap_or_default();
        format!("RESULT images={}\n{missing}", report.images.len()) + &lines.collect::<String>()
    })
}

/// Standard error of the mean reward over prompts; images come prompt by prompt.
fn standard_error(rewards: &[f64], images_per_prompt: usize) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    // A prompt with an image that was not judged counts for nothing.
    let prompts = rewards.chunks(images_per_prompt).map(mean).filter(|mean| mean.is_finite());
    let prompts: Vec<f64> = prompts.collect();
    let (n, centre) = (prompts.len() as f64, mean(&prompts));
    let variance = prompts.iter().map(|p| (p - centre).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (variance / n).sqrt()
}

/// What is evaluated, and the adapter that goes on it.
fn prepare(args: &Args, device: &Device) -> Result<(Setup, Option<(AdapterBank, Slot)>)> {
    let rewards = rewards(args)?;
    let prompts = args.prompts.as_deref().expect("given, or of DrawBench");
    match (&args.checkpoint, &args.model) {
        (Some(path), _) => {
            let saved = checkpoint::load(&checkpoint::find(path)?)?;
            let trained = checkpoint_config(&saved)?;
            let model = match &args.model {
                Some(model) => args.parts.source(model),
                None => args.parts.over(trained.source()),
            };
            let setup = load(evaluation_config(model, prompts, rewards, Some(&trained))?, args, device)?;
            let bank = saved_average(&saved, &trained, setup.pipeline.network.modules(), &setup.device)?;
            Ok((setup, Some((bank, Slot::Average))))
        }
        (None, Some(model)) => {
            let mut setup = load(evaluation_config(args.parts.source(model), prompts, rewards, None)?, args, device)?;
            let Some(path) = &args.lora else { return Ok((setup, None)) };
            let lora = Arc::new(LoraFile::open(path)?);
            setup.prompts.merge(&lora)?;
            let bank = lora.bank(TRANSFORMER, setup.pipeline.network.modules(), &setup.device)?;
            Ok((setup, bank.map(|bank| (bank, Slot::Theta))))
        }
        (None, None) => bail!("--checkpoint or --model is needed"),
    }
}

/// What `--rewards`, `--reward-model` and `--set` say.
fn rewards(args: &Args) -> Result<BTreeMap<String, RewardKeys>> {
    let weights = pairs(&args.rewards, "--rewards", |v| match v {
        None => Ok(1.0),
        Some(v) => v.parse::<f64>().ok().filter(|w| w.is_finite()).context("expected NAME or NAME=WEIGHT"),
    })?;
    let mut rewards: BTreeMap<String, RewardKeys> =
        weights.into_iter().map(|(name, weight)| (name, RewardKeys::weight(weight))).collect();
    for (name, model) in
        pairs(&args.reward_model, "--reward-model", |v| v.map(PathBuf::from).context("expected NAME=DIR"))?
    {
        let reward = rewards.get_mut(&name).with_context(|| format!("--reward-model {name}: not among --rewards"))?;
        reward.options.set_path("model", &model);
    }
    for one in &args.overrides {
        let name =
            one.strip_prefix("reward_models.").and_then(|rest| Some(rest.split_once('.')?.0)).unwrap_or_default();
        let reward = rewards
            .get_mut(name)
            .with_context(|| format!("--set {one}: expected reward_models.NAME.KEY=VALUE, NAME one of --rewards"))?;
        let mut options = config::reward_options(name, std::slice::from_ref(one))?;
        options.fill(std::mem::take(&mut reward.options));
        reward.options = options;
    }
    Ok(rewards)
}

/// Loads what `config`, with what the command line says, needs.
fn load(config: TrainConfig, args: &Args, device: &Device) -> Result<Setup> {
    let mut planned = check(adjust(config, args), Job::Evaluate)?;
    MemoryPlan::fitting(&mut planned, device)?.check(&planned, device)?;
    planned.load(device)
}

/// `config` with what the command line says.
fn adjust(mut config: TrainConfig, args: &Args) -> TrainConfig {
    let eval = &mut config.eval;
    eval.num_prompts = args.num_prompts.unwrap_or(0);
    eval.num_images_per_prompt = args.images_per_prompt.unwrap_or(eval.num_images_per_prompt);
    eval.num_inference_steps = args.steps.unwrap_or(eval.num_inference_steps);
    eval.guidance_scale = args.guidance.unwrap_or(eval.guidance_scale);
    config.seed = args.seed.unwrap_or(config.seed);
    config.rollout.resolution = args.resolution.unwrap_or(config.rollout.resolution);
    config.rollout.batch_size = args.batch_size.unwrap_or(config.rollout.batch_size);
    config.prompts.max_sequence_length = args.max_sequence_length.unwrap_or(config.prompts.max_sequence_length);
    config
}

/// `NAME=VALUE` arguments as a map.
fn pairs<T>(args: &[String], flag: &str, value: impl Fn(Option<&str>) -> Result<T>) -> Result<BTreeMap<String, T>> {
    let mut out = BTreeMap::new();
    for arg in args {
        let (name, text) = arg.split_once('=').map_or((arg.as_str(), None), |(n, v)| (n, Some(v)));
        out.insert(name.to_string(), value(text).with_context(|| format!("{flag} {arg}"))?);
    }
    Ok(out)
}
