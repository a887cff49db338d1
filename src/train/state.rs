//! All that a run has learnt; saved and restored as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::drift::GradNorms;
use super::ema::EvalEma;
use super::scaler::LossScale;
use super::setup::Setup;
use crate::algorithms::Algorithm;
use crate::config::{self, TrainConfig};
use crate::device::{DType, Device, Tensor};
use crate::models::lora::{AdapterBank, Layout, Module, Slot, select};
use crate::models::source::Source;
use crate::ops::adamw::{self, AdamW, Moments};
use crate::rewards;

/// A run's state between two epochs.
pub struct State {
    /// Epochs done.
    pub epoch: u32,
    /// The trained adapter, those that follow it, and the average that is evaluated and published.
    pub bank: AdapterBank,
    /// The average's schedule.
    pub ema: EvalEma,
    /// The optimiser's moments.
    pub moments: Moments,
    /// What the loss is times before the backward, where that is in f16.
    pub loss_scale: Option<LossScale>,
    /// What gradients have been like, where one that is out of proportion is left out.
    pub grad_norms: GradNorms,
}

impl State {
    /// The state before the first epoch: all adapters equal, and equal to the base.
    pub fn new(setup: &Setup) -> Self {
        let raw = &setup.config.raw;
        let theta = AdapterBank::initial(&setup.layout, setup.pipeline.network.modules(), raw.seed, &setup.device);
        let moments = Moments::zeros_like(&theta);
        let mut bank = AdapterBank::new(setup.layout.clone(), raw.lora.alpha / raw.lora.rank as f32);
        bank.set(Slot::Theta, theta);
        for slot in setup.algorithm.slots().iter().chain([&Slot::Average]) {
            bank.copy(*slot, Slot::Theta);
        }
        let loss_scale = (setup.pipeline.network.multiplies_in() == DType::F16).then(LossScale::default);
        let ema = EvalEma::new(f64::from(raw.ema.decay), u64::from(raw.ema.interval));
        Self { epoch: 0, bank, ema, moments, loss_scale, grad_norms: GradNorms::default() }
    }

    /// One optimiser step along `factor·grads`, then the adapters that follow the trained one do.
    pub fn step(&mut self, optimizer: &AdamW, algorithm: &dyn Algorithm, grads: &Tensor, factor: f32) {
        // Counted in updates: also if the first was skipped, the next leaves both adapters equal.
        let update = self.moments.steps;
        adamw::step(optimizer, self.bank.numbers_mut(Slot::Theta), grads, factor, &mut self.moments);
        algorithm.follow(&mut self.bank, update);
        self.ema.update(&mut self.bank);
    }

    /// The state as a checkpoint. Holds nothing that differs between two runs of the same config.
    ///
    /// # Errors
    /// If the device has failed, and with it what it holds.
    pub fn to_checkpoint(&self, setup: &Setup) -> Result<Checkpoint> {
        setup.device.check()?;
        let modules = setup.pipeline.network.modules();
        let mut meta = json!({
            "epoch": self.epoch,
            "optimizer_steps": self.moments.steps,
            "ema_steps": self.ema.steps,
            "config": toml::to_string(&setup.config.raw)?,
            "inputs": setup.inputs,
        });
        if let Some(scale) = &self.loss_scale {
            meta["loss_scale"] = scale.to_json();
        }
        if setup.config.raw.optimizer.max_grad_outlier > 0.0 {
            meta["grad_norms"] = self.grad_norms.to_json();
        }
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), meta };
        for (slot, numbers) in self.bank.slots() {
            checkpoint.insert(slot.name(), numbers, &setup.layout, modules);
        }
        checkpoint.insert(EXP_AVG, &self.moments.exp_avg, &setup.layout, modules);
        checkpoint.insert(EXP_AVG_SQ, &self.moments.exp_avg_sq, &setup.layout, modules);
        Ok(checkpoint)
    }

    /// The state that `checkpoint` holds.
    ///
    /// # Errors
    /// If the checkpoint is of another config or other inputs (naming the first key that differs) or lacks something.
    pub fn from_checkpoint(setup: &Setup, checkpoint: &Checkpoint) -> Result<Self> {
        check_same_run(&checkpoint_config(checkpoint)?, &setup.config.raw)?;
        check_same_inputs(&checkpoint.meta["inputs"], setup)?;
        let mut state = Self::new(setup);
        let number = |key: &str| {
            checkpoint.meta[key].as_u64().with_context(|| format!("the checkpoint's state.json has no number '{key}'"))
        };
        state.epoch = number("epoch")? as u32;
        state.moments.steps = number("optimizer_steps")?;
        state.ema.steps = number("ema_steps")?;
        if let Some(scale) = &mut state.loss_scale {
            *scale = LossScale::from_json(&checkpoint.meta["loss_scale"])?;
        }
        state.grad_norms = GradNorms::from_json(&checkpoint.meta["grad_norms"])?;
        let modules = setup.pipeline.network.modules();
        let flat = |kind| checkpoint.flat(kind, &setup.layout, modules, &setup.device);
        let slots: Vec<Slot> = state.bank.slots().map(|(slot, _)| slot).collect();
        for slot in slots {
            state.bank.set(slot, flat(slot.name())?);
        }
        state.moments.exp_avg = flat(EXP_AVG)?;
        state.moments.exp_avg_sq = flat(EXP_AVG_SQ)?;
        Ok(state)
    }
}

/// The moments' names in checkpoints.
const EXP_AVG: &str = "exp_avg";
const EXP_AVG_SQ: &str = "exp_avg_sq";

/// The averaged adapter of a checkpoint that was trained with `config` on a network with these `modules`.
///
/// # Errors
/// If the checkpoint lacks a tensor or one has another shape.
pub fn saved_average(
    checkpoint: &Checkpoint,
    config: &TrainConfig,
    modules: &[Module],
    device: &Device,
) -> Result<AdapterBank> {
    let selected = select(modules, &config.lora.targets)?;
    let layout = Arc::new(Layout::selected(modules, &selected, config.lora.rank));
    let numbers = checkpoint.flat(Slot::Average.name(), &layout, modules, device)?;
    let mut bank = AdapterBank::new(layout, config.lora.alpha / config.lora.rank as f32);
    bank.set(Slot::Average, numbers);
    Ok(bank)
}

/// The modules that the checkpoint has averaged factors for, as far as they can be told from these.
pub fn modules_of(checkpoint: &Checkpoint) -> Vec<Module> {
    let prefix = format!("{}.", Slot::Average.name());
    let module = |(name, a): (&String, &Tensor)| {
        let name = name.strip_prefix(&prefix)?.strip_suffix(".lora_A.weight")?;
        let b = checkpoint.tensors.get(&format!("{prefix}{name}.lora_B.weight"))?;
        let [&inputs, &outputs] = [a.shape().get(1)?, b.shape().first()?];
        Some(Module { name: name.to_string(), inputs, outputs, trainable: true })
    };
    checkpoint.tensors.iter().filter_map(module).collect()
}

/// The config a checkpoint was made with.
///
/// # Errors
/// If it holds none, or one that this version does not read.
pub fn checkpoint_config(checkpoint: &Checkpoint) -> Result<TrainConfig> {
    let text = checkpoint.meta["config"].as_str().context("the checkpoint's state.json has no 'config'")?;
    config::parse("the checkpoint's config", text)
}

/// Keys that may differ when a run is resumed: they change how long it goes, how fast, and what is reported. Where the
/// learning rate falls, `num_epochs` says how fast.
const FREE: [&str; 6] =
    ["num_epochs", "eval", "stop", "checkpoint", "rollout.batch_size", "train.activation_checkpointing"];

/// Fails if two configs differ in a key that decides what a run learns.
///
/// # Errors
/// Names the first key that differs and both values.
fn check_same_run(saved: &TrainConfig, now: &TrainConfig) -> Result<()> {
    let (saved, now) = (toml::Value::try_from(without_paths(saved))?, toml::Value::try_from(without_paths(now))?);
    match difference("", &saved, &now) {
        None => Ok(()),
        Some((key, before, after)) => bail!(
            "the checkpoint is of another config: {key} was {before}, now it is {after}; restore it, or choose another --output-dir"
        ),
    }
}

/// A config without the places of its inputs, whose content is what counts.
fn without_paths(config: &TrainConfig) -> TrainConfig {
    let mut config = config.clone();
    config.set_source(Source::default());
    (config.prompts.train, config.prompts.eval) = Default::default();
    config.reward_models.clear();
    for (name, reward) in &mut config.rewards {
        if let Ok(entry) = rewards::entry(name) {
            reward.options.forget_paths(entry.keys);
            reward.options.forget(&rewards::http::FREE);
        }
    }
    config
}

/// Fails if an input has other content than when the run began. Checkpoints of earlier versions do not say.
fn check_same_inputs(saved: &Value, setup: &Setup) -> Result<()> {
    for (key, now) in &setup.inputs {
        if let Some(before) = saved[key].as_str()
            && before != now
        {
            bail!(
                "the checkpoint was trained with another {key}: its content has changed since; restore it, or choose another --output-dir"
            );
        }
    }
    Ok(())
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
