//! The keys of Centred Reward Distillation.

use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{TimeType, Times};
use crate::config::resolved::within;

/// Centred Reward Distillation (arXiv 2603.14128), as Flow-Factory has it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrdKeys {
    /// What the implicit reward is times.
    pub beta: f64,
    /// Advantages are clamped to plus and minus this; it is also what the loss is times.
    pub advantage_clip: f64,
    /// How the implicit reward is brought to the rewards.
    pub loss: CrdLoss,
    /// How rewards are centred in a group: below 0 by their mean; above by means that weigh the best images more, and the worst, by
    /// a softmax at this temperature; 0 by the mean of the positive ones, and of the negative.
    pub temperature: f64,
    /// Whether matching errors are divided by their mean absolute value.
    pub adaptive: bool,
    /// Whether the distance to the reference weighs less at worse images.
    pub adaptive_kl: bool,
    /// Weight of the distance to the reference.
    pub kl_weight: f64,
    /// Classifier-free guidance of the reference, and of nothing else; 1: none.
    pub kl_guidance_scale: f32,
    /// Times per group and epoch.
    pub num_timesteps: usize,
    /// Where they come from.
    pub time_type: TimeType,
    /// Which part of the way from noise to image they come from.
    pub timestep_range: [f64; 2],
    /// Optimiser steps of an epoch, each over a share of its groups.
    pub updates_per_epoch: usize,
    /// How much of the policy that the implicit reward compares with survives an epoch: `start-value-slope-cap`.
    pub old_decay: Ramp,
    /// The same of the policy that samples.
    pub sampling_decay: Ramp,
    /// Added to the standard deviation of the rewards.
    pub advantage_eps: f64,
}

impl Default for CrdKeys {
    /// The published settings for OCR.
    fn default() -> Self {
        Self {
            beta: 1.0,
            advantage_clip: 5.0,
            loss: CrdLoss::default(),
            temperature: -1.0,
            adaptive: true,
            adaptive_kl: true,
            kl_weight: 0.1,
            kl_guidance_scale: 4.5,
            num_timesteps: 20,
            time_type: TimeType::Discrete,
            timestep_range: [0.0, 0.99],
            updates_per_epoch: 2,
            old_decay: Ramp { start: 0, value: 0.25, slope: 0.005, cap: 0.999 },
            sampling_decay: Ramp { start: 75, value: 0.0, slope: 0.0075, cap: 0.999 },
            advantage_eps: 1e-4,
        }
    }
}

impl CrdKeys {
    /// The times of a group.
    pub fn times(&self) -> Times {
        Times { time_type: self.time_type, count: self.num_timesteps, range: self.timestep_range }
    }

    pub(super) fn check(&self) -> Result<()> {
        within("crd.beta", self.beta, 1e-6..=1e6)?;
        within("crd.advantage_clip", self.advantage_clip, 1e-3..=1e3)?;
        within("crd.temperature", self.temperature, -1e6..=1e6)?;
        within("crd.kl_weight", self.kl_weight, 0.0..=1e6)?;
        within("crd.kl_guidance_scale", self.kl_guidance_scale.into(), 1.0..=100.0)?;
        self.times().check("crd")?;
        within("crd.updates_per_epoch", self.updates_per_epoch as f64, 1.0..=1e3)?;
        within("crd.advantage_eps", self.advantage_eps, 0.0..=1.0)
    }
}

/// How the implicit reward is brought to the rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CrdLoss {
    /// By the square of their difference.
    #[default]
    Mse,
    /// By the cross-entropy of their sigmoids.
    Bce,
}

/// A decay that is `value` until optimiser step `start`, and from there on `slope` more each, up to `cap`; written
/// `start-value-slope-cap`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ramp {
    /// Where it begins to grow.
    pub start: u64,
    /// What it is before.
    pub value: f64,
    /// How much it grows with a step.
    pub slope: f64,
    /// What it grows to.
    pub cap: f64,
}

impl Ramp {
    /// The decay after `n` optimiser steps.
    pub fn after(self, n: u64) -> f32 {
        let grown = self.value + n.saturating_sub(self.start) as f64 * self.slope;
        (if n < self.start { self.value } else { grown.min(self.cap) }) as f32
    }
}

impl TryFrom<String> for Ramp {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let expected = || format!("found '{text}', expected start-value-slope-cap such as 75-0-0.0075-0.999");
        let parts: Vec<&str> = text.split('-').collect();
        let [start, value, slope, cap] = parts[..] else { return Err(Error::msg(expected())) };
        let number = |part: &str| part.parse::<f64>().ok().filter(|x| x.is_finite()).with_context(expected);
        let start = start.parse().ok().with_context(expected)?;
        let ramp = Self { start, value: number(value)?, slope: number(slope)?, cap: number(cap)? };
        ensure!(ramp.value <= 1.0 && ramp.cap <= 1.0, "found '{text}', and a decay is at most 1");
        Ok(ramp)
    }
}

impl From<Ramp> for String {
    fn from(Ramp { start, value, slope, cap }: Ramp) -> Self {
        format!("{start}-{value}-{slope}-{cap}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(text: &str) -> Result<Ramp> {
        Ramp::try_from(text.to_string())
    }

    /// §16.3, and the one of DiffusionNFT that it is like (§14.4, type 2).
    #[test]
    fn a_decay_is_flat_then_grows_then_stays() {
        let late = ramp("75-0-0.0075-0.999").unwrap();
        assert_eq!([0, 74, 75, 76, 1000].map(|n| late.after(n)), [0.0, 0.0, 0.0, 0.0075, 0.999]);
        let old = ramp("0-0.25-0.005-0.999").unwrap();
        assert_eq!([0, 10, 1000].map(|n| old.after(n)), [0.25, 0.3, 0.999]);
        assert_eq!(ramp(&String::from(old)).unwrap(), old);
    }

    #[test]
    fn what_is_no_decay_is_refused_with_the_form() {
        for text in ["", "1-2-3", "a-0-0-0", "0--1-0-0", "1-0-0-inf"] {
            let e = ramp(text).unwrap_err().to_string();
            assert_eq!(e, format!("found '{text}', expected start-value-slope-cap such as 75-0-0.0075-0.999"));
        }
        assert_eq!(ramp("0-0-0-1.5").unwrap_err().to_string(), "found '0-0-0-1.5', and a decay is at most 1");
    }
}
