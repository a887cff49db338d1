use std::path::PathBuf;

use anyhow::Result;
use engine::compare::results::Results;
use engine::compare::{self, Budget};
use engine::config::Place;
use engine::device::Device;
use engine::telemetry::say;

use super::DeviceArg;
use super::json::{self, JsonArg};

/// Train several configs on the same model, prompts, seeds and budget, and compare how their held-out rewards rise.
///
/// Every config runs with every seed, in DIR/<config>/seed-<seed>. After each run DIR has table.csv, evaluations.csv and the
/// curves over updates and over time, mean and range over seeds, as rewards.svg and rewards.png. The same command again
/// goes on where it was stopped; with another budget or more seeds, only what is missing is computed.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Training configs: files, or names of published ones (engine configs lists them).
    #[arg(long, value_name = "FILE.toml", required = true, num_args = 1..)]
    config: Vec<PathBuf>,
    /// Seeds.
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Length of each run in epochs; what its config says if none of --epochs, --images and --seconds is given.
    #[arg(long, value_name = "N", group = "budget", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Length of each run in images that it samples to train on.
    #[arg(long, value_name = "N", group = "budget")]
    images: Option<usize>,
    /// Length of each run in seconds of training and evaluating.
    #[arg(long, value_name = "N", group = "budget", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Held-out reward whose time is taken; if left out, four fifths of the way from the first to the highest last one.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    reach: Option<f64>,
    /// Override keys of all the configs.
    #[arg(long, value_name = "KEY.PATH=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Folder for all runs and their comparison.
    #[arg(long, value_name = "DIR", default_value = "outputs/compare")]
    output_dir: PathBuf,
    /// Print all that is known of every epoch.
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("reach", "the held-out reward whose time is taken"),
    ("rows[].name", "the config"),
    ("rows[].seeds", "runs"),
    ("rows[].first", "mean held-out reward before training"),
    ("rows[].last", "the same at the end"),
    ("rows[].deviation", "its standard deviation over seeds"),
    ("rows[].best", "the highest mean over seeds"),
    ("rows[].reached", "runs that reached the reward"),
    ("rows[].updates", "optimiser steps until then, median of those runs"),
    ("rows[].images", "images until then"),
    ("rows[].seconds", "seconds of training until then"),
];

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move |device| compare(&args, device))
}

fn compare(args: &Args, device: &Device) -> Result<()> {
    let budget = match (args.epochs, args.images, args.seconds) {
        (Some(epochs), ..) => Budget::Epochs(epochs),
        (_, Some(images), _) => Budget::Images(images),
        (.., Some(seconds)) => Budget::Seconds(seconds),
        _ => Budget::Config,
    };
    let places = args.config.iter().map(|named| Place::find(named)).collect::<Result<Vec<_>>>()?;
    let runs = compare::plan(&places, &args.seeds, budget, &args.set, &args.output_dir)?;
    let folders: Vec<(String, PathBuf)> = runs.iter().map(|run| (run.name.clone(), run.folder.clone())).collect();
    compare::go(runs, &args.output_dir, args.reach, args.verbose, device)?;
    let found = Results::read(&folders, args.reach)?;
    found.write(&args.output_dir)?;
    say(&format!("curves: {}", args.output_dir.join("rewards.svg").display()));
    args.json.answer(&found, || found.table())
}
