//! The keys of DiffusionNFT.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::resolved::within;

/// DiffusionNFT (arXiv 2509.16117).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NftKeys {
    /// How far the positive and the negative policy are from the lagged one: `v± = v_old ± beta·(v_θ − v_old)`.
    pub beta: f64,
    /// Advantages are clamped to plus and minus this; it is also what the loss is times.
    pub advantage_clip: f64,
    /// Which advantages count.
    pub advantage_mode: AdvantageMode,
    /// Weight of the distance to the reference.
    pub kl_weight: f64,
    /// The part of the rollout's steps that are trained at, in an order of each image's own.
    pub timestep_fraction: f64,
    /// Optimiser steps of an epoch.
    pub updates_per_epoch: usize,
    /// How the lagged policy follows.
    pub decay: Decay,
    /// Added to the standard deviation of the rewards.
    pub advantage_eps: f64,
}

impl Default for NftKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            beta: 1.0,
            advantage_clip: 5.0,
            advantage_mode: AdvantageMode::default(),
            kl_weight: 1e-4,
            timestep_fraction: 0.99,
            updates_per_epoch: 1,
            decay: Decay::default(),
            advantage_eps: 1e-4,
        }
    }
}

impl NftKeys {
    pub(super) fn check(&self) -> Result<()> {
        within("nft.beta", self.beta, 1e-3..=1e3)?;
        within("nft.advantage_clip", self.advantage_clip, 1e-3..=1e3)?;
        within("nft.kl_weight", self.kl_weight, 0.0..=1e6)?;
        within("nft.timestep_fraction", self.timestep_fraction, 0.01..=1.0)?;
        within("nft.updates_per_epoch", self.updates_per_epoch as f64, 1.0..=1e3)?;
        within("nft.advantage_eps", self.advantage_eps, 0.0..=1.0)
    }
}

/// Which advantages count, before they become a probability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageMode {
    /// As they are.
    #[default]
    All,
    /// Negative ones are 0.
    PositiveOnly,
    /// Positive ones are 0.
    NegativeOnly,
    /// 1 if positive, else 0.
    OneOnly,
    /// Their sign.
    Binary,
}

/// How much of the lagged policy survives an epoch, after `n` optimiser steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Nothing: on policy. (Type 0 of the published code.)
    None,
    /// `0.001·n`, at most 0.5. (Type 1.)
    #[default]
    Slow,
    /// Nothing for 75 steps, then `0.0075` more each, at most 0.999. (Type 2.)
    Late,
}
