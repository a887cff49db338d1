//! The keys of first-order Reward Score Matching.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::resolved::within;

/// First-order Reward Score Matching, for rewards that have a gradient: `v_ref − η(σ)·reward_scale·∇r` is matched.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RsmFirstOrderKeys {
    /// Where the gradient is taken.
    pub gradient: GradientAt,
    /// `η(σ)`.
    pub schedule: Slope,
    /// What the gradient of the reward to the latent is times.
    pub reward_scale: f64,
    /// The longest that an image's gradient may be in the first update of an epoch; in the others, what `gradient_quantile` says of
    /// the gradients of the update before. 0: any length.
    pub gradient_clip: f64,
    /// See `gradient_clip`.
    pub gradient_quantile: f64,
    /// Optimiser steps of an epoch, each over a share of its points.
    pub updates_per_epoch: usize,
}

impl Default for RsmFirstOrderKeys {
    /// The published settings.
    fn default() -> Self {
        Self {
            gradient: GradientAt::default(),
            schedule: Slope::default(),
            reward_scale: 1.5e7,
            gradient_clip: 1.0,
            gradient_quantile: 0.8,
            updates_per_epoch: 20,
        }
    }
}

impl RsmFirstOrderKeys {
    pub(super) fn check(&self) -> Result<()> {
        within("rsm_first_order.reward_scale", self.reward_scale, 0.0..=1e12)?;
        within("rsm_first_order.gradient_clip", self.gradient_clip, 0.0..=1e12)?;
        within("rsm_first_order.gradient_quantile", self.gradient_quantile, 0.0..=1.0)?;
        within("rsm_first_order.updates_per_epoch", self.updates_per_epoch as f64, 1.0..=1e3)
    }
}

/// How much of the gradient is added at noise level `σ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Slope {
    /// `1 − σ`.
    #[default]
    Linear,
    /// `(1 − σ)²`, as VGG-Flow.
    Square,
}

/// Where the gradient of the reward is taken that a step of a rollout is led by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientAt {
    /// At the end of the rollout, once for all of its steps.
    #[default]
    Terminal,
    /// For each step at the clean latent that its velocity, a constant, points at: `x − σ·v`, as VGG-Flow.
    OneStep,
}
