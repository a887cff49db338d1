//! The keys of Flow-GRPO and its variants.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Method;
use crate::config::resolved::within;

/// Flow-GRPO (arXiv 2505.05470), its Fast variant, CPS (2509.05952) and GRPO-Guard (2510.22319): one table each, of these keys.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoKeys {
    /// Ratios below `1 − clip_low` count as that, if it is worth more.
    pub clip_low: f64,
    /// Ratios above `1 + clip_high` count as that, if it is worth more.
    pub clip_high: f64,
    /// Advantages are clamped to plus and minus this.
    pub advantage_clip: f64,
    /// Weight of the divergence from the reference.
    pub kl_weight: f64,
    /// What that divergence is.
    pub kl_type: KlType,
    /// By which variance it is divided.
    pub kl_denominator: KlDenominator,
    /// Whether the unconditional velocity of guidance is trained too.
    pub cfg_uncond_grad: bool,
    /// Steps that add noise and are trained on, at a place of each epoch's own; 0: all add noise, and all but the last are
    /// trained on.
    pub window_size: usize,
    /// The window is within these steps, the second not included.
    pub window_range: [usize; 2],
    /// Where in its range the window is.
    pub window_place: WindowPlace,
    /// For how many epochs a `progressive` window stays where it is.
    pub window_interval: u32,
    /// The part of the steps, from the first, that is trained on where there is no window.
    pub timestep_fraction: f64,
    /// Optimiser steps of an epoch, each over a share of its images.
    pub updates_per_epoch: usize,
    /// `grpo_guard`: what a step's loss is divided by.
    pub guard_grad_balance: GuardGradBalance,
    /// Which standard deviation of rewards advantages are in.
    pub std: Std,
    /// Added to it.
    pub advantage_eps: f64,
}

impl Default for GrpoKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            clip_low: 1e-4,
            clip_high: 1e-4,
            advantage_clip: 5.0,
            kl_weight: 0.04,
            kl_type: KlType::default(),
            kl_denominator: KlDenominator::default(),
            cfg_uncond_grad: true,
            window_size: 0,
            window_range: [0, 5],
            window_place: WindowPlace::default(),
            window_interval: 25,
            timestep_fraction: 0.99,
            updates_per_epoch: 2,
            guard_grad_balance: GuardGradBalance::default(),
            std: Std::default(),
            advantage_eps: 1e-4,
        }
    }
}

impl GrpoKeys {
    pub(super) fn check(&self, method: Method) -> Result<()> {
        let table = method.name();
        let key = |name: &str| format!("{table}.{name}");
        within(&key("clip_low"), self.clip_low, 1e-9..=1.0)?;
        within(&key("clip_high"), self.clip_high, 1e-9..=1e3)?;
        within(&key("advantage_clip"), self.advantage_clip, 1e-3..=1e3)?;
        within(&key("kl_weight"), self.kl_weight, 0.0..=1e6)?;
        within(&key("timestep_fraction"), self.timestep_fraction, 0.01..=1.0)?;
        within(&key("updates_per_epoch"), self.updates_per_epoch as f64, 1.0..=1e3)?;
        within(&key("advantage_eps"), self.advantage_eps, 0.0..=1.0)?;
        within(&key("window_interval"), f64::from(self.window_interval), 1.0..=1e6)?;
        let [first, end] = self.window_range;
        ensure!(
            self.window_size == 0 || (first < end && self.window_size <= end - first),
            "{} is {}, which does not fit into {} = [{first}, {end}]",
            key("window_size"),
            self.window_size,
            key("window_range")
        );
        ensure!(
            method != Method::FlowGrpoFast || self.window_size > 0,
            "{} is 0, expected the number of steps that are trained on: without a window it is 'flow_grpo'",
            key("window_size")
        );
        Ok(())
    }
}

/// Where in its range an epoch's window is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowPlace {
    /// Anywhere.
    #[default]
    Random,
    /// At the start of the range, and a step later every few epochs; after the end at the start again (MixGRPO, arXiv 2507.21802).
    Progressive,
    /// Steps anywhere, which need not follow each other (Flow-Factory's `sde_steps`).
    Scattered,
}

/// The standard deviation that advantages are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Std {
    /// Of all rewards of the epoch.
    #[default]
    Global,
    /// Of the rewards of the image's prompt.
    Group,
}

/// How far the trained policy is from the reference at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KlType {
    /// The divergence of two normal distributions.
    #[default]
    Gaussian,
    /// The square of the distance of their means.
    X,
    /// The square of the distance of the velocities.
    V,
}

/// The variance that a divergence is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KlDenominator {
    /// That of the noise per unit of time, as the published code has it.
    #[default]
    StdDev,
    /// That of the step.
    StepStd,
}

/// What balances the gradients of GRPO-Guard's steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardGradBalance {
    /// They are divided by the length of the step.
    #[default]
    InverseDt,
    /// Nothing.
    None,
}
