use std::path::PathBuf;

use anyhow::{Result, ensure};
use engine::config;
use engine::data::{Prompt, PromptSet};
use engine::device::Device;
use engine::io::built_in;
use engine::io::image::{RgbImage, read_rgb};
use engine::rewards::{self, Images, Scoring, Unavailable, WeightedSum};
use engine::telemetry::warn;
use serde_json::json as object;

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
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Prompts, .txt or .jsonl: one for each image in their order, or a single one for all.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("image", "the file"),
    ("prompt", "what it was judged by"),
    ("reward", "the reward's name"),
    ("score", "what it gives the image; null if its server does not"),
    ("extra", "what it reports besides, by name"),
];

pub fn run(mut args: Args) -> Result<()> {
    built_in::stand_in(&mut args.prompts, "--prompts").iter().for_each(|line| warn(line));
    let device = args.device.clone();
    device.run(move |device| score(&args, device))
}

fn score(args: &Args, device: &Device) -> Result<()> {
    let mut options = config::reward_options(&args.reward, &args.overrides)?;
    if let Some(model) = &args.model {
        options.set_path("model", model);
    }
    let reward = rewards::build(&args.reward, options, device)?;
    let reward = WeightedSum::new(vec![(reward, 1.0)])?;
    let set = PromptSet::load(&args.prompts)?;
    reward.check(&set)?;
    let (found, needed) = (set.prompts.len(), args.images.len());
    ensure!(
        found == needed || found == 1,
        "{}: {found} prompts for {needed} images, expected one for each, or a single one",
        args.prompts.display()
    );
    let prompts: Vec<&Prompt> = (0..needed).map(|i| &set.prompts[if found == 1 { 0 } else { i }]).collect();
    let pictures = args.images.iter().map(|p| read_rgb(p)).collect::<Result<Vec<_>>>()?;
    let size = |p: &RgbImage| (p.width, p.height);
    let (mut scoring, mut first) = (Scoring::new(&reward), 0);
    for alike in pictures.chunk_by(|a, b| size(a) == size(b)) {
        let images = Images::from_pictures(alike.to_vec(), device);
        scoring.batch(&images, &prompts[first..first + alike.len()])?;
        first += alike.len();
    }
    let scores = scoring.finish(needed);
    for (i, path) in args.images.iter().enumerate() {
        let one = &scores.rewards[0].1[i];
        let line = object!({
            "image": path.display().to_string(),
            "prompt": prompts[i].text,
            "reward": args.reward,
            "score": one.value,
            "extra": one.extra,
        });
        println!("{line}");
    }
    match scores.missing.into_values().next() {
        Some(why) => Err(Unavailable(why).into()),
        None => Ok(()),
    }
}
