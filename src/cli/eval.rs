use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use engine::config::{Job, TrainConfig};
use engine::io::{image, lora, output_folder, safetensors::write_atomic};
use engine::models::lora::Adapter;
use engine::train::checkpoint;
use engine::train::guard::Interrupt;
use engine::train::report::means;
use engine::train::setup::{Setup, evaluation_config, plan};
use engine::train::state::{checkpoint_config, saved_average};
use serde_json::json;

use super::{DeviceArg, sequence_length};

/// Sample held-out prompts and print the mean rewards as lines `RESULT key=value`.
///
/// With --checkpoint, model and settings come from the config the checkpoint was trained with.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["checkpoint", "model"])))]
pub struct Args {
    /// A checkpoint, or the output folder of a run for its latest; its averaged adapter is evaluated.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Model folder in the layout of diffusers.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// LoRA to evaluate on --model.
    #[arg(long, value_name = "PATH", requires = "model")]
    lora: Option<PathBuf>,
    /// Prompts: .txt or .jsonl.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Rewards, each with an optional weight.
    #[arg(long, value_name = "NAME[=WEIGHT]", required = true, num_args = 1..)]
    rewards: Vec<String>,
    /// Folder of a reward's model.
    #[arg(long, value_name = "NAME=DIR")]
    reward_model: Vec<String>,
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
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move || evaluate(&args))
}

fn evaluate(args: &Args) -> Result<()> {
    let (mut setup, adapter) = prepare(args)?;
    if let Some(out) = &args.out {
        output_folder(out)?;
    }
    let report = setup.evaluate(&adapter, &Interrupt::install()?)?;
    let mut results = means(&report.scores);
    results.insert(
        "reward_stderr".into(),
        standard_error(&report.scores.avg, setup.config.raw.eval.num_images_per_prompt),
    );
    println!("RESULT images={}", report.images.len());
    for (key, value) in &results {
        println!("RESULT {key}={value:.6}");
    }
    if let Some(out) = &args.out {
        for (i, picture) in report.images.iter().enumerate() {
            image::write_png(&out.join(format!("{i}.png")), picture)?;
        }
        write_atomic(&out.join("results.json"), format!("{:#}\n", json!(results)).as_bytes())?;
    }
    Ok(())
}

/// Standard error of the mean reward over prompts; images come prompt by prompt.
fn standard_error(rewards: &[f64], images_per_prompt: usize) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let prompts: Vec<f64> = rewards.chunks(images_per_prompt).map(mean).collect();
    let (n, centre) = (prompts.len() as f64, mean(&prompts));
    let variance = prompts.iter().map(|p| (p - centre).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (variance / n).sqrt()
}

fn prepare(args: &Args) -> Result<(Setup, Adapter)> {
    let rewards = pairs(&args.rewards, "--rewards", |v| match v {
        None => Ok(1.0),
        Some(v) => v.parse::<f64>().ok().filter(|w| w.is_finite()).context("expected NAME or NAME=WEIGHT"),
    })?;
    let models = pairs(&args.reward_model, "--reward-model", |v| v.map(PathBuf::from).context("expected NAME=DIR"))?;
    match (&args.checkpoint, &args.model) {
        (Some(path), _) => {
            let saved = checkpoint::load(&checkpoint::find(path)?)?;
            let trained = checkpoint_config(&saved)?;
            let base = evaluation_config(&trained.model, &args.prompts, rewards, models, Some(&trained));
            let setup = plan(adjust(base, args), Job::Evaluate)?.load()?;
            let adapter = saved_average(&saved, &trained, setup.pipeline.transformer.modules())?;
            Ok((setup, adapter))
        }
        (None, Some(model)) => {
            let base = evaluation_config(model, &args.prompts, rewards, models, None);
            let setup = plan(adjust(base, args), Job::Evaluate)?.load()?;
            let modules = setup.pipeline.transformer.modules();
            let adapter = match &args.lora {
                Some(path) => lora::load(path, modules)?,
                None => Adapter::from_factors(1.0, modules.iter().map(|_| None).collect()),
            };
            Ok((setup, adapter))
        }
        (None, None) => bail!("--checkpoint or --model is needed"),
    }
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
