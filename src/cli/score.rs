use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use engine::config;
use engine::data::{Prompt, PromptSet};
use engine::device::Device;
use engine::io::image::{RgbImage, read_rgb};
use engine::io::{built_in, output_file, write_atomic};
use engine::rewards::geneval::given;
use engine::rewards::{self, Images, Score, Scoring, Unavailable, WeightedSum};
use engine::telemetry::warn;
use serde_json::{Map, Value, json as object};

use super::{DeviceArg, json};

/// Score image files with a reward: one JSON line per image.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Reward.
    #[arg(long, value_name = "NAME")]
    reward: String,
    /// The reward's model, for rewards that have one: --set reward_models.NAME.model=PATH.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another key of the reward, as a config's table [rewards.NAME] has it: reward_models.NAME.KEY=VALUE.
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1..)]
    overrides: Vec<String>,
    /// Image files.
    #[arg(long, value_name = "FILE", required_unless_present = "detections", num_args = 1..)]
    images: Vec<PathBuf>,
    /// Prompts, .txt or .jsonl: one for each image in their order, or a single one for all.
    #[arg(long, value_name = "FILE", required_unless_present = "detections")]
    prompts: Option<PathBuf>,
    /// With geneval, judge these instead of images: a JSON list of {"metadata": .., "detections": [{"class", "score", "box",
    /// "color"}]}, one for each line of --prompts, or each with the record of its prompt.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["images", "dump", "model", "overrides"])]
    detections: Option<PathBuf>,
    /// Also write what the reward saw in each image here, as JSON: {image: what was seen}.
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("image", "the file; null where detections are judged"),
    ("prompt", "what it was judged by"),
    ("reward", "the reward's name"),
    ("score", "what it gives the image; null if its server does not"),
    ("extra", "what it reports besides, by name"),
];

pub fn run(mut args: Args) -> Result<()> {
    if let Some(prompts) = &mut args.prompts {
        built_in::stand_in(prompts, "--prompts").iter().for_each(|line| warn(line));
    }
    if let Some(detections) = &args.detections {
        return judge(&args, detections);
    }
    let device = args.device.clone();
    device.run(move |device| score(&args, device))
}

/// Judges what somebody else has seen.
fn judge(args: &Args, detections: &Path) -> Result<()> {
    ensure!(args.reward == "geneval", "--detections: only geneval judges detections, not {}", args.reward);
    let prompts = args.prompts.as_deref().map(PromptSet::load).transpose()?;
    for (prompt, score) in given::judge(detections, prompts.as_ref())? {
        print(args, None, &prompt, &score);
    }
    Ok(())
}

fn print(args: &Args, image: Option<&Path>, prompt: &Prompt, score: &Score) {
    let line = object!({
        "image": image.map(|path| path.display().to_string()),
        "prompt": prompt.text,
        "reward": args.reward,
        "score": score.value,
        "extra": score.extra,
    });
    println!("{line}");
}

fn score(args: &Args, device: &Device) -> Result<()> {
    args.dump.as_deref().map(output_file).transpose()?;
    let mut options = config::reward_options(&args.reward, &args.overrides)?;
    if let Some(model) = &args.model {
        options.set_path("model", model);
    }
    let reward = rewards::build(&args.reward, options, device)?;
    let reward = WeightedSum::new(vec![(reward, 1.0)])?;
    let path = args.prompts.as_deref().expect("required with images");
    let set = PromptSet::load(path)?;
    reward.check(&set)?;
    let (found, needed) = (set.prompts.len(), args.images.len());
    ensure!(
        found == needed || found == 1,
        "{}: {found} prompts for {needed} images, expected one for each, or a single one",
        path.display()
    );
    let prompts: Vec<&Prompt> = (0..needed).map(|i| &set.prompts[if found == 1 { 0 } else { i }]).collect();
    let pictures = args.images.iter().map(|p| read_rgb(p)).collect::<Result<Vec<_>>>()?;
    let size = |p: &RgbImage| (p.width, p.height);
    let (mut scoring, mut first) = (Scoring::new(&reward), 0);
    let mut seen = Map::new();
    for alike in pictures.chunk_by(|a, b| size(a) == size(b)) {
        let (images, batch) = (Images::from_pictures(alike.to_vec(), device), first..first + alike.len());
        match &args.dump {
            None => scoring.batch(&images, &prompts[batch.clone()])?,
            Some(dump) => {
                let Some((_, values)) = scoring.explained(&images, &prompts[batch.clone()])?.pop() else {
                    bail!("--dump {}: {} has nothing to show", dump.display(), args.reward);
                };
                let names = args.images[batch.clone()].iter().map(|p| p.display().to_string());
                seen.extend(names.zip(values));
            }
        }
        first = batch.end;
    }
    if let Some(dump) = &args.dump {
        write_atomic(dump, format!("{:#}\n", Value::Object(seen)).as_bytes())?;
    }
    let scores = scoring.finish(needed);
    for ((path, prompt), score) in args.images.iter().zip(&prompts).zip(&scores.rewards[0].1) {
        print(args, Some(path), prompt, score);
    }
    match scores.missing.into_values().next() {
        Some(why) => Err(Unavailable(why).into()),
        None => Ok(()),
    }
}
