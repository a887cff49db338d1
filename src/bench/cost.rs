//! What a run would take on this machine: FLOPs counted on a plan of it, by rates measured here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::machine::Machine;
use super::measured::Measured;
use super::passes::Passes;
use super::peak::{Peak, random};
use crate::algorithms;
use crate::config::raw::{Eval, Weights};
use crate::config::{Job, TrainConfig};
use crate::device::work::{Done, Works};
use crate::device::{DType, Device, Precision, Tensor};
use crate::models::autoencoder::Autoencoder;
use crate::models::lora::{Slot, select};
use crate::models::network::{Checkpointing, Network};
use crate::models::source::Component;
use crate::models::text::TextEncoders;
use crate::models::{load_network, mmdit};
use crate::ops::conv2d::{self, Window};
use crate::rollout::schedule::Schedule;
use crate::telemetry::clock;
use crate::train::plan::MemoryPlan;
use crate::train::setup::{self, Planned};

/// Networks with weights up to this many bytes are measured themselves, of others one block.
const SMALL: u64 = 64 << 20;
/// Tokens per axis of a block that stands for a network: its table of positions need not be larger.
const MOST_TOKENS: usize = 64;
/// Images that are decoded at once.
const DECODED: usize = 8;
/// What the passes get of the time that a run's measurements have.
const FORWARD: f64 = 0.3;
const TRAINING: f64 = 0.5;
const DECODING: f64 = 0.1;

/// What a run takes, predicted.
pub struct Cost {
    /// The config.
    pub config: String,
    /// What was not there, and what stood for it; what else the prediction assumes.
    pub assumptions: Vec<String>,
    /// What was measured for it: a forward of the rollout, a forward and backward of the update, decoding.
    pub measured: Vec<Measured>,
    /// What their rates are held against.
    pub peak: Peak,
    /// Seconds of an epoch, by phase.
    pub phases: BTreeMap<&'static str, f64>,
    /// FLOPs of an epoch, by phase.
    pub flops: BTreeMap<&'static str, u64>,
    /// Seconds of an evaluation.
    pub evaluation: f64,
    /// Images of an epoch.
    pub images: usize,
    /// How many epochs and evaluations there are.
    pub epochs: u32,
    pub evaluations: u32,
}

impl Cost {
    /// Measures what `raw`'s networks do on `device` for about `budget`, and predicts.
    ///
    /// # Errors
    /// If the config cannot be run.
    pub fn of(
        mut raw: TrainConfig,
        config: String,
        device: &Device,
        machine: &Machine,
        budget: Duration,
    ) -> Result<Self> {
        let mut assumptions = setup::stand_in(&mut raw);
        let mut planned = setup::check(raw, Job::Train).with_context(|| config.clone())?;
        assumptions.extend(planned.outline_missing()?);
        let plan = MemoryPlan::of(&planned, device).with_context(|| config.clone())?;

        let subject = Subject::of(&planned, device)?;
        assumptions.push(subject.describe());
        let peak = machine.peak(subject.load(device)?.multiplies_in());
        let [forward, training] = subject.measure(&planned, device, peak, budget)?;
        let decoding = decoding(&planned, device, budget.mul_f64(DECODING))?;
        // Rewards' networks are made of products.
        let products = machine.measured[0].0.rate();
        let rate = |phase: &str| match phase {
            "rollout" | "evaluation" => forward.rate(),
            "update" => training.rate(),
            "decode" => decoding.rate(),
            _ => products,
        };
        let flops = by_phase(&plan.epoch);
        let phases = flops.iter().map(|(phase, flops)| (*phase, *flops as f64 / rate(phase))).collect();
        let evaluation = by_phase(&plan.evaluation).iter().map(|(phase, flops)| *flops as f64 / rate(phase)).sum();

        let raw = &planned.config.raw;
        assumptions.push("not counted: text encoders (once per prompt), rewards without a network, files".into());
        if raw.rollout.weights == Weights::Fp8 {
            assumptions.push("the rollout's fp8 is taken to be as fast as what training multiplies in".into());
        }
        Ok(Self {
            config,
            assumptions,
            measured: vec![forward, training, decoding],
            peak,
            phases,
            flops,
            evaluation,
            images: planned.config.images,
            epochs: raw.num_epochs,
            evaluations: evaluations(&raw.eval, raw.num_epochs),
        })
    }

    /// Seconds of an epoch.
    pub fn epoch(&self) -> f64 {
        self.phases.values().sum()
    }

    /// Seconds of all epochs and evaluations.
    pub fn total(&self) -> f64 {
        self.epoch() * f64::from(self.epochs) + self.evaluation * f64::from(self.evaluations)
    }

    /// As an object.
    pub fn json(&self) -> Value {
        json!({
            "config": self.config,
            "seconds_per_epoch": self.epoch(),
            "images_per_second": self.images as f64 / self.epoch(),
            "seconds_per_phase": self.phases,
            "flops_per_phase": self.flops,
            "seconds_per_evaluation": self.evaluation,
            "epochs": self.epochs,
            "evaluations": self.evaluations,
            "total_seconds": self.total(),
            "measured": self.measured.iter().map(|m| m.json(self.peak.rate)).collect::<Vec<_>>(),
            "assumptions": self.assumptions,
        })
    }

    /// As lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}:", self.config)];
        lines.extend(self.measured.iter().map(|m| m.line(self.peak.rate)));
        let phases: Vec<String> = self.phases.iter().map(|(phase, s)| format!("{phase} {}", seconds(*s))).collect();
        let [epoch, evaluation, total] = [self.epoch(), self.evaluation, self.total()].map(seconds);
        lines.push(format!("  predicted {epoch} per epoch ({})", phases.join(", ")));
        let (epochs, evaluations) = (self.epochs, self.evaluations);
        lines.push(format!("  predicted {total} in all: {epochs} epochs, {evaluations} evaluations of {evaluation}"));
        lines.extend(self.assumptions.iter().map(|a| format!("  assumes: {a}")));
        lines
    }
}

fn seconds(seconds: f64) -> String {
    let days = seconds / 86400.0;
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        _ if days < 3.0 => clock(seconds),
        _ if days < 1000.0 => format!("{days:.1} days"),
        _ => format!("{:.0} years", days / 365.25),
    }
}

/// Before the first epoch, after every so many, and after the last.
fn evaluations(eval: &Eval, epochs: u32) -> u32 {
    1 + if eval.every == 0 { 1 } else { epochs.div_ceil(eval.every) }
}

fn by_phase(works: &Works) -> BTreeMap<&'static str, u64> {
    let mut flops = BTreeMap::new();
    // Text encoders see a prompt once in a run.
    let counts = |done: &Done| done.work.flops > 0 && done.phase != "text encoders";
    for (done, times) in works.iter().filter(|(done, _)| counts(done)) {
        *flops.entry(done.phase).or_default() += done.work.flops * times;
    }
    flops
}

/// The network whose passes are measured for a run.
struct Subject {
    part: Component,
    /// Of how many blocks it is one, if it stands for a larger one.
    blocks: Option<usize>,
    precision: Precision,
    /// The policies that a training point goes through, the trained one first.
    policies: Vec<Option<Slot>>,
    text: usize,
}

impl Subject {
    fn of(planned: &Planned, device: &Device) -> Result<Self> {
        let (raw, model) = (&planned.config.raw, planned.model());
        let (mut part, mut blocks) = (model.component("transformer")?.clone(), None);
        let is_small = part.weights("diffusion_pytorch_model").is_ok_and(|file| file.bytes() <= SMALL);
        let config = mmdit::Config::load(&part)?;
        if !is_small {
            let (_, mut settings) = part.settings("config.json")?;
            settings["num_layers"] = json!(1);
            settings["pos_embed_max_size"] = json!(config.pos_embed_max_size.min(MOST_TOKENS));
            let dual: &[usize] = if config.dual_attention_layers.is_empty() { &[] } else { &[0] };
            settings["dual_attention_layers"] = json!(dual);
            (part, blocks) = (part.random(settings), Some(config.num_layers));
        }
        let tokens = config.sizes().tokens(planned.config.latent, planned.config.latent);
        let algorithm = algorithms::build(raw, &Schedule::load(model.component("scheduler")?)?, tokens)?;
        let needs = algorithm.needs();
        let reference = algorithm.slots().contains(&Slot::Reference).then_some(Slot::Reference);
        let unconditional = algorithm.reference_guidance().map(|_| reference);
        let others = [needs.reference.then_some(reference), unconditional, needs.old.then_some(Some(Slot::Old))];
        // What stands for a larger network has no time for more than the trained one.
        let others = others.into_iter().flatten().filter(|_| blocks.is_none());
        let (rehearsal, _) = device.rehearsal()?;
        Ok(Self {
            part,
            blocks,
            precision: raw.train.compute.precision(),
            policies: std::iter::once(Some(Slot::Theta)).chain(others).collect(),
            text: TextEncoders::load(model, &rehearsal)?.tokens(raw.prompts.max_sequence_length),
        })
    }

    fn describe(&self) -> String {
        let path = self.part.path().display();
        match self.blocks {
            None => format!("all passes are as fast as those measured of {path}, in batches of the config"),
            Some(n) => format!(
                "all {n} blocks of {path} are as fast per FLOP as one with random weights, and batches as one image of the size that there was time for"
            ),
        }
    }

    fn load(&self, device: &Device) -> Result<Box<dyn Network>> {
        load_network(&self.part, device, self.precision)
    }

    fn passes(&self, planned: &Planned, device: &Device) -> Result<Passes> {
        let (network, mut lora) = (self.load(device)?, planned.config.raw.lora.clone());
        if self.blocks.is_some() {
            // A last block makes nothing of its text, and has no layer for it.
            lora.targets.retain(|target| select(network.modules(), std::slice::from_ref(target)).is_ok());
        }
        Passes::new(network, &lora, &self.policies)
    }

    /// A forward of a rollout, and a forward and backward of an update: in the config's batches if it is the network itself,
    /// smaller ones if they take too long.
    fn measure(&self, planned: &Planned, device: &Device, peak: Peak, budget: Duration) -> Result<[Measured; 2]> {
        let config = &planned.config;
        let (keep, latent) = (config.raw.train.activation_checkpointing, config.latent);
        let patch = mmdit::Config::load(&self.part)?.patch_size;
        let (rehearsal, _) = device.rehearsal()?;
        let counted = self.passes(planned, &rehearsal)?;
        let count = |pass: &Pass| {
            rehearsal.take_work();
            counted.run(pass, &self.policies, keep, self.text);
            by_phase(&rehearsal.take_work()).values().sum::<u64>()
        };
        let passes = self.passes(planned, device)?;
        let batches = match self.blocks {
            None => [config.raw.rollout.batch_size, config.raw.train.batch_size],
            Some(_) => [1, 1],
        };
        let most = MOST_TOKENS * patch;
        let side = if self.blocks.is_some() { latent.min(most) } else { latent };
        let shares = [(false, batches[0], FORWARD), (true, batches[1], TRAINING)];
        Ok(shares.map(|(trains, rows, share)| {
            let (budget, mut pass) = (budget.mul_f64(share), Pass { trains, rows, side });
            // Twice at least, at half of the peak.
            let takes = |flops: u64| 4.0 * flops as f64 / peak.rate;
            let mut flops = count(&pass);
            while takes(flops) > budget.as_secs_f64() && pass.shrink(patch) {
                flops = count(&pass);
            }
            let what = if trains { "forward and backward" } else { "forward" };
            let of = if self.blocks.is_some() { "one block" } else { "the network" };
            let tokens = (pass.side / patch).pow(2) + self.text;
            let name = format!("{what} of {of}, {} x {tokens} tokens", pass.rows);
            let inputs = passes.inputs(pass.all(&self.policies), pass.side, self.text);
            Measured::of(name, flops, device, budget, || {
                if trains { passes.training(&inputs, &self.policies, keep) } else { passes.forward(&inputs) }
            })
        }))
    }
}

/// A pass of some size.
struct Pass {
    trains: bool,
    /// Images, or training points.
    rows: usize,
    /// Of the latent.
    side: usize,
}

impl Pass {
    /// Rows that go through the network.
    fn all(&self, policies: &[Option<Slot>]) -> usize {
        if self.trains { self.rows * policies.len() } else { self.rows }
    }

    /// Makes it smaller, if it can be.
    fn shrink(&mut self, patch: usize) -> bool {
        let can = self.rows > 1 || self.side >= 4 * patch && self.side.is_multiple_of(2 * patch);
        if self.rows > 1 {
            self.rows /= 2;
        } else if can {
            self.side /= 2;
        }
        can
    }
}

impl Passes {
    fn run(&self, pass: &Pass, policies: &[Option<Slot>], keep: Checkpointing, text: usize) {
        let inputs = self.inputs(pass.all(policies), pass.side, text);
        if pass.trains {
            self.training(&inputs, policies, keep)
        } else {
            self.forward(&inputs)
        };
    }
}

/// Decoding of images, or of a large autoencoder one convolution.
fn decoding(planned: &Planned, device: &Device, budget: Duration) -> Result<Measured> {
    let part = planned.model().component("vae")?;
    let random = |shape: &[usize]| random(device, DType::F32, shape);
    let (rehearsal, _) = device.rehearsal()?;
    if part.weights("diffusion_pytorch_model").is_ok_and(|file| file.bytes() <= SMALL) {
        let load = |device: &Device| Autoencoder::load(part, device, planned.config.raw.train.compute.precision());
        let (vae, counted, side) = (load(device)?, load(&rehearsal)?, planned.config.latent);
        let shape = [DECODED, vae.config().latent_channels, side, side];
        rehearsal.take_work();
        counted.decode(&Tensor::scratch(&rehearsal, &shape));
        let flops = by_phase(&rehearsal.take_work()).values().sum();
        let latents = random(&shape);
        let name = format!("decoding of {DECODED} images");
        return Ok(Measured::of(name, flops, device, budget, || vae.decode(&latents)));
    }
    const CHANNELS: usize = 128;
    const SIDE: usize = 128;
    let (x, bias) = (random(&[1, SIDE, SIDE, CHANNELS]), random(&[CHANNELS]));
    let weight = conv2d::arranged(&random(&[CHANNELS, CHANNELS, 3, 3]));
    let flops = (2 * SIDE * SIDE * CHANNELS * 9 * CHANNELS) as u64;
    let name = format!("convolution 3 x 3, {CHANNELS} channels, {SIDE} x {SIDE} pixels");
    Ok(Measured::of(name, flops, device, budget, || conv2d::forward(&x, &weight, &bias, Window::same(3), None)))
}
