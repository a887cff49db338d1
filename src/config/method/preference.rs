//! The keys of the methods that learn from preferences: within pairs, and within groups.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Method, TimeType, Times};
use crate::config::resolved::within;

/// Diffusion-DPO (arXiv 2311.12908) on the best and the worst image of each prompt, as flow_grpo has it, and OnlineDPO: one table
/// each, of these keys.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoKeys {
    /// How much a difference of matching errors counts.
    pub beta: f64,
    /// Times per pair and epoch.
    pub num_timesteps: usize,
    /// Where they come from.
    pub time_type: TimeType,
    /// Which part of the way from noise to image they come from.
    pub timestep_range: [f64; 2],
    /// Optimiser steps of an epoch, each at its share of the times of all pairs.
    pub updates_per_epoch: usize,
    /// Whether prompts whose images all have the same reward are left out; else the second is taken for better than the first.
    pub skip_equal_groups: bool,
    /// The reference, which also samples, becomes the trained policy every this many optimiser steps; `dpo` keeps it. Left out,
    /// it is 40 for `online_dpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_update_step: Option<u64>,
}

impl Default for DpoKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            beta: 100.0,
            num_timesteps: 39,
            time_type: TimeType::LogitNormal1000,
            timestep_range: [0.0, 1.0],
            updates_per_epoch: 1,
            skip_equal_groups: true,
            ref_update_step: None,
        }
    }
}

impl DpoKeys {
    /// The times of a pair.
    pub fn times(&self) -> Times {
        Times { time_type: self.time_type, count: self.num_timesteps, range: self.timestep_range }
    }

    pub(super) fn check(&self, method: Method) -> Result<()> {
        let table = method.name();
        within(&format!("{table}.beta"), self.beta, 1e-6..=1e6)?;
        self.times().check(table)?;
        within(&format!("{table}.updates_per_epoch"), self.updates_per_epoch as f64, 1.0..=self.num_timesteps as f64)?;
        check_reference(method, self.ref_update_step)
    }
}

/// Fails if `method` and the steps after which its reference follows contradict each other.
pub(super) fn check_reference(method: Method, every: Option<u64>) -> Result<()> {
    let (name, online) = (method.name(), if method == Method::Sft { "online_sft" } else { "online_dpo" });
    ensure!(
        every.is_none() || !matches!(method, Method::Sft | Method::Dpo),
        "{name}.ref_update_step is {}, but '{name}' keeps the policy that it starts from; the one that moves it is '{online}'",
        every.unwrap_or_default()
    );
    ensure!(every != Some(0), "{name}.ref_update_step is 0, expected at least 1");
    Ok(())
}

/// Direct Group Preference Optimisation (arXiv 2510.08425), as Flow-Factory has it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DgpoKeys {
    /// How much a difference of matching errors counts in the weight of a group.
    pub beta: f64,
    /// Advantages are clamped to plus and minus this.
    pub advantage_clip: f64,
    /// Whether images whose ratio to the lagged policy is outside the clip range no longer pull.
    pub clip: bool,
    /// Whether the distance to the reference does not pull at these either.
    pub clip_kl: bool,
    /// How far below 1 a ratio may be.
    pub clip_low: f64,
    /// How far above 1 a ratio may be.
    pub clip_high: f64,
    /// Weight of the distance to the reference.
    pub kl_weight: f64,
    /// Classifier-free guidance of the reference, and of nothing else; 1: none.
    pub kl_guidance_scale: f32,
    /// What the weight of a group compares with.
    pub reference: GroupReference,
    /// Times per group and epoch.
    pub num_timesteps: usize,
    /// Where they come from.
    pub time_type: TimeType,
    /// Which part of the way from noise to image they come from.
    pub timestep_range: [f64; 2],
    /// Optimiser steps of an epoch, each over a share of its groups.
    pub updates_per_epoch: usize,
    /// After more optimiser steps than this the lagged policy samples; 0: the trained one always does.
    pub switch_ema_ref: u64,
    /// The lagged policy's decay grows by this each update …
    pub ema_decay_rate: f32,
    /// … up to this.
    pub ema_decay_max: f32,
    /// Added to the standard deviation of the rewards.
    pub advantage_eps: f64,
}

impl Default for DgpoKeys {
    /// The published settings for PickScore.
    fn default() -> Self {
        Self {
            beta: 10.0,
            advantage_clip: 5.0,
            clip: true,
            clip_kl: false,
            clip_low: 0.05,
            clip_high: 0.05,
            kl_weight: 1e-3,
            kl_guidance_scale: 1.0,
            reference: GroupReference::default(),
            num_timesteps: 4,
            time_type: TimeType::Discrete,
            timestep_range: [0.0, 0.6],
            updates_per_epoch: 1,
            switch_ema_ref: 200,
            ema_decay_rate: 1e-3,
            ema_decay_max: 0.3,
            advantage_eps: 1e-4,
        }
    }
}

impl DgpoKeys {
    /// The times of a group.
    pub fn times(&self) -> Times {
        Times { time_type: self.time_type, count: self.num_timesteps, range: self.timestep_range }
    }

    pub(super) fn check(&self) -> Result<()> {
        within("dgpo.beta", self.beta, 1e-6..=1e6)?;
        within("dgpo.advantage_clip", self.advantage_clip, 1e-3..=1e3)?;
        within("dgpo.clip_low", self.clip_low, 1e-9..=1.0)?;
        within("dgpo.clip_high", self.clip_high, 1e-9..=1e3)?;
        within("dgpo.kl_weight", self.kl_weight, 0.0..=1e6)?;
        within("dgpo.kl_guidance_scale", self.kl_guidance_scale.into(), 1.0..=100.0)?;
        self.times().check("dgpo")?;
        within("dgpo.updates_per_epoch", self.updates_per_epoch as f64, 1.0..=1e3)?;
        within("dgpo.ema_decay_rate", self.ema_decay_rate.into(), 0.0..=1.0)?;
        within("dgpo.ema_decay_max", self.ema_decay_max.into(), 0.0..=0.9999)?;
        within("dgpo.advantage_eps", self.advantage_eps, 0.0..=1.0)
    }
}

/// What the weight of a group compares the trained policy with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupReference {
    /// The policy that the run starts from.
    #[default]
    Base,
    /// The lagged one.
    Old,
}
