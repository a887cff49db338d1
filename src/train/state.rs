//! All that a run has learnt; saved and restored as a whole.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::checkpoint::Checkpoint;
use super::ema::{EvalEma, old_decay};
use super::optimizer::{AdamW, Moments};
use super::setup::Setup;
use crate::config::{self, TrainConfig};
use crate::models::lora::{Adapter, Module, select};

/// A run's state between two epochs.
#[derive(Clone)]
pub struct State {
    /// Epochs done.
    pub epoch: u32,
    /// The trained adapter.
    pub theta: Adapter,
    /// The lagged adapter, which samples.
    pub old: Adapter,
    /// The averaged adapter, which is evaluated and published.
    pub average: Adapter,
    /// The average's schedule.
    pub ema: EvalEma,
    /// The optimiser's moments.
    pub moments: Moments,
}

impl State {
    /// The state before the first epoch: all adapters equal, and equal to the base.
    pub fn new(setup: &Setup) -> Self {
        let theta = setup.initial_adapter();
        let ema = &setup.config.raw.ema;
        Self {
            epoch: 0,
            old: theta.clone(),
            average: theta.clone(),
            ema: EvalEma::new(f64::from(ema.decay), u64::from(ema.interval)),
            moments: Moments::zeros_like(&theta),
            theta,
        }
    }

    /// One optimiser step, then the lagged and the averaged adapter follow.
    pub fn step(&mut self, optimizer: &AdamW, grads: &Adapter, config: &TrainConfig) {
        // Counted in updates: also if the first was skipped, the next leaves both adapters equal.
        let update = self.moments.steps as u32;
        optimizer.step(&mut self.theta, grads, &mut self.moments);
        self.old.lerp(&self.theta, old_decay(update, config.ram.old_decay_rate, config.ram.old_decay_max));
        self.ema.update(&mut self.average, &self.theta);
    }

    fn adapters(&self) -> [(&'static str, &Adapter); 5] {
        [
            ("theta", &self.theta),
            ("old", &self.old),
            ("average", &self.average),
            ("exp_avg", &self.moments.exp_avg),
            ("exp_avg_sq", &self.moments.exp_avg_sq),
        ]
    }

    /// The state as a checkpoint. Holds nothing that differs between two runs of the same config.
    pub fn to_checkpoint(&self, setup: &Setup) -> Result<Checkpoint> {
        let names = self.theta.names(setup.pipeline.transformer.modules());
        let meta = json!({
            "epoch": self.epoch,
            "optimizer_steps": self.moments.steps,
            "ema_steps": self.ema.steps,
            "config": toml::to_string(&setup.config.raw)?,
        });
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), meta };
        for (kind, adapter) in self.adapters() {
            checkpoint.insert(kind, adapter, &names);
        }
        Ok(checkpoint)
    }

    /// The state that `checkpoint` holds.
    ///
    /// # Errors
    /// If the checkpoint is of another config (naming the first key that differs) or lacks something.
    pub fn from_checkpoint(setup: &Setup, checkpoint: &Checkpoint) -> Result<Self> {
        check_same_run(&checkpoint_config(checkpoint)?, &setup.config.raw)?;
        let mut state = Self::new(setup);
        let number = |key: &str| {
            checkpoint.meta[key].as_u64().with_context(|| format!("the checkpoint's state.json has no number '{key}'"))
        };
        state.epoch = number("epoch")? as u32;
        state.moments.steps = number("optimizer_steps")?;
        state.ema.steps = number("ema_steps")?;
        let names = state.theta.names(setup.pipeline.transformer.modules());
        let adapter = |kind| checkpoint.adapter(kind, &setup.initial_adapter(), &names);
        state.theta = adapter("theta")?;
        state.old = adapter("old")?;
        state.average = adapter("average")?;
        state.moments.exp_avg = adapter("exp_avg")?;
        state.moments.exp_avg_sq = adapter("exp_avg_sq")?;
        Ok(state)
    }
}

/// The averaged adapter of a checkpoint that was trained with `config` on a transformer with these `modules`.
///
/// # Errors
/// If the checkpoint lacks a tensor or one has another shape.
pub fn saved_average(checkpoint: &Checkpoint, config: &TrainConfig, modules: &[Module]) -> Result<Adapter> {
    let selected = select(modules, &config.lora.targets)?;
    let like = Adapter::init(modules, &selected, config.lora.rank, config.lora.alpha, config.seed);
    checkpoint.adapter("average", &like, &like.names(modules))
}

/// The config a checkpoint was made with.
///
/// # Errors
/// If it holds none, or one that this version does not read.
pub fn checkpoint_config(checkpoint: &Checkpoint) -> Result<TrainConfig> {
    let text = checkpoint.meta["config"].as_str().context("the checkpoint's state.json has no 'config'")?;
    config::parse("the checkpoint's config", text)
}

/// Keys that may differ when a run is resumed: they change how long it goes, how fast, and what is reported.
const FREE: [&str; 5] = ["num_epochs", "eval", "checkpoint", "rollout.batch_size", "train.activation_checkpointing"];

/// Fails if two configs differ in a key that decides what a run learns.
///
/// # Errors
/// Names the first key that differs and both values.
fn check_same_run(saved: &TrainConfig, now: &TrainConfig) -> Result<()> {
    let (saved, now) = (toml::Value::try_from(saved)?, toml::Value::try_from(now)?);
    match difference("", &saved, &now) {
        None => Ok(()),
        Some((key, before, after)) => bail!(
            "the checkpoint is of another config: {key} was {before}, now it is {after}; restore it, or choose another --output-dir"
        ),
    }
}

fn difference(path: &str, a: &toml::Value, b: &toml::Value) -> Option<(String, String, String)> {
    if FREE.contains(&path) {
        return None;
    }
    match (a, b) {
        (toml::Value::Table(a), toml::Value::Table(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => difference(&path, a, b),
                    (a, b) => {
                        let show = |v: Option<&toml::Value>| v.map_or("absent".to_string(), ToString::to_string);
                        (!FREE.contains(&path.as_str())).then(|| (path.clone(), show(a), show(b)))
                    }
                }
            })
        }
        _ => (a != b).then(|| (path.to_string(), a.to_string(), b.to_string())),
    }
}
