use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use engine::bench::cost::Cost;
use engine::bench::machine::Machine;
use engine::config::{self, TrainConfig};
use engine::device::{Device, workers};
use engine::telemetry::bytes;
use serde_json::{Value, json};

use super::DeviceArg;
use super::json::{self, JsonArg};

/// The config that is costed where it is there, and the published one that is built in.
const DEMONSTRATION: &str = "configs/tiny/ram_geneval.toml";
const PUBLISHED: &str = "ram_pickscore.toml";

/// Measure this machine, and say what a run would take on it.
///
/// Takes about ten seconds: matrix products, attention, a forward and a training row of the run's own transformer if it is
/// small, else of one block of its shape with random weights; each the median of several repetitions. Seconds per epoch are
/// predicted from the FLOPs of the config and these rates. Measure while nothing else runs.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(&KEYS))]
pub struct Args {
    /// Training config whose time is predicted; the tiny demonstration, if it is there, and ram_pickscore if left out.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Override keys of the config.
    #[arg(long, value_name = "KEY.PATH=VALUE", num_args = 1.., requires = "config")]
    set: Vec<String>,
    /// Model folder or file in the place of the config's, at its own resolution.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArg,
    /// How long it may take.
    #[arg(long, hide = true, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: [(&str, &str); 26] = [
    ("device", "what was measured"),
    ("threads", "worker threads"),
    ("seconds", "how long it took"),
    ("peak_flops_per_second", "by type: the fastest large product"),
    ("measured[].name", "what was timed"),
    ("measured[].flops", "of its matrix products, two per multiply-add"),
    ("measured[].seconds", "median"),
    ("measured[].repetitions", "how often"),
    ("measured[].flops_per_second", "rate"),
    ("measured[].share_of_peak", "of the peak of its type"),
    ("runs[].config", "the config; all below is predicted"),
    ("runs[].seconds_per_epoch", "of training"),
    ("runs[].images_per_second", "in an epoch"),
    ("runs[].seconds_per_phase", "of an epoch, by phase"),
    ("runs[].flops_per_phase", "of an epoch, by phase"),
    ("runs[].seconds_per_evaluation", "of held-out prompts"),
    ("runs[].epochs", "how many"),
    ("runs[].evaluations", "how many"),
    ("runs[].total_seconds", "of all epochs and evaluations"),
    ("runs[].measured[].name", "what the prediction is made of"),
    ("runs[].measured[].flops", "as above"),
    ("runs[].measured[].seconds", "as above"),
    ("runs[].measured[].repetitions", "as above"),
    ("runs[].measured[].flops_per_second", "as above"),
    ("runs[].measured[].share_of_peak", "as above"),
    ("runs[].assumptions[]", "in words"),
];

/// The value of `--seconds`.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| s.is_finite() && (0.0..=3600.0).contains(s));
    seconds.ok_or_else(|| "expected seconds, 0 to 3600".into())
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move |device| bench(&args, device))
}

fn bench(args: &Args, device: &Device) -> Result<()> {
    let begin = Instant::now();
    if device.is_interpreted() {
        bail!("--device vm: kernels are interpreted there, so that times mean nothing; expected cpu, cuda or auto");
    }
    let configs = configs(args)?;
    let budget = Duration::from_secs_f64(args.seconds);
    let Some(machine) = Machine::measure(device, budget) else { bail!("nothing is computed on this device") };
    let each = budget.saturating_sub(begin.elapsed()) / configs.len() as u32;
    let costs: Result<Vec<Cost>> =
        configs.into_iter().map(|(name, config)| Cost::of(config, name, device, &machine, each)).collect();
    let (costs, took) = (costs?, begin.elapsed().as_secs_f64());
    let mut answer = json!({ "device": name(device), "threads": workers(), "seconds": took });
    machine.json().into_iter().for_each(|(key, value)| answer[key] = value);
    answer["runs"] = costs.iter().map(Cost::json).collect::<Value>();
    args.json.answer(&answer, || {
        let peaks = machine.peaks.map(|p| format!("{} {:.0} GFLOP/s", p.dtype, p.rate / 1e9)).join(", ");
        let mut lines = vec![format!("{}, {} threads; products reach {peaks}", name(device), workers())];
        lines.push("median time, rate, share of that peak (repetitions):".into());
        lines.extend(machine.measured.iter().map(|(measured, peak)| measured.line(peak.rate)));
        lines.extend(costs.iter().flat_map(Cost::lines));
        lines.push(format!("measured in {took:.1} s\n"));
        lines.join("\n")
    })
}

fn name(device: &Device) -> String {
    match device {
        Device::Gpu(gpu) => format!("{}, {}", gpu.facts().name, bytes(gpu.facts().memory)),
        Device::Cpu | Device::Plan(_) => "cpu".into(),
    }
}

/// What is costed, by name.
fn configs(args: &Args) -> Result<Vec<(String, TrainConfig)>> {
    let mut configs = match &args.config {
        Some(path) => vec![(path.display().to_string(), config::load(path, &args.set)?)],
        None => {
            let demonstration = Path::new(DEMONSTRATION);
            let is_there = demonstration.exists() && args.model.is_none();
            let demonstration = is_there.then(|| config::load(demonstration, &[])).transpose()?;
            let published = (PUBLISHED.to_string(), config::load(Path::new(PUBLISHED), &[])?);
            demonstration.map(|config| (DEMONSTRATION.into(), config)).into_iter().chain([published]).collect()
        }
    };
    if let Some(model) = &args.model {
        for (_, config) in &mut configs {
            config.model.clone_from(model);
            config.rollout.resolution = 0;
        }
    }
    Ok(configs)
}
