//! The keys of AWM.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::TimeType;
use crate::config::resolved::{at_least_one, within};

/// Advantage-Weighted Matching (arXiv 2509.25050).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwmKeys {
    /// Ratios below `1 − clip_low` count as that, if it is worth more.
    pub clip_low: f64,
    /// Ratios above `1 + clip_high` count as that, if it is worth more.
    pub clip_high: f64,
    /// Advantages are clamped to plus and minus this ..
    pub advantage_clip: f64,
    /// .. and then scaled so that this is the largest.
    pub advantage_max: f64,
    /// What makes a log-probability of a matching error.
    pub weighting: Weighting,
    /// The exponent of `ghuber`.
    pub ghuber_power: f64,
    /// `exp_first` has a ratio for each time, `sum_first` one for each image, of the mean log-probability.
    pub loss_type: LossType,
    /// Weight of the distance to the reference.
    pub kl_weight: f64,
    /// What that is weighed with over time.
    pub kl_form: KlForm,
    /// Weight of the distance to the lagged policy.
    pub ema_kl_weight: f64,
    /// What that is weighed with over time.
    pub ema_kl_form: KlForm,
    /// Times per image.
    pub num_timesteps: usize,
    /// Where they come from.
    pub time_type: TimeType,
    /// The part of the rollout's steps, from the first, that times are taken from.
    pub timestep_fraction: f64,
    /// Added to the standard deviation of the rewards.
    pub advantage_eps: f64,
    /// The lagged policy's decay grows by this each update …
    pub ema_decay_rate: f32,
    /// … up to this.
    pub ema_decay_max: f32,
}

impl Default for AwmKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            clip_low: 1.0,
            clip_high: 1.0,
            advantage_clip: 5.0,
            advantage_max: 1.0,
            weighting: Weighting::default(),
            ghuber_power: 0.25,
            loss_type: LossType::default(),
            kl_weight: 1e-3,
            kl_form: KlForm::default(),
            ema_kl_weight: 1.0,
            ema_kl_form: KlForm::default(),
            num_timesteps: 6,
            time_type: TimeType::default(),
            timestep_fraction: 0.9,
            advantage_eps: 1e-4,
            ema_decay_rate: 1e-3,
            ema_decay_max: 0.3,
        }
    }
}

impl AwmKeys {
    pub(super) fn check(&self) -> Result<()> {
        let positive = |key: &str, x: f64| within(key, x, 1e-12..=1e6);
        positive("awm.clip_low", self.clip_low)?;
        positive("awm.clip_high", self.clip_high)?;
        positive("awm.advantage_clip", self.advantage_clip)?;
        positive("awm.advantage_max", self.advantage_max)?;
        within("awm.ghuber_power", self.ghuber_power, 0.01..=1.0)?;
        within("awm.kl_weight", self.kl_weight, 0.0..=1e6)?;
        within("awm.ema_kl_weight", self.ema_kl_weight, 0.0..=1e6)?;
        at_least_one("awm.num_timesteps", self.num_timesteps)?;
        within("awm.timestep_fraction", self.timestep_fraction, 0.01..=1.0)?;
        within("awm.advantage_eps", self.advantage_eps, 0.0..=1.0)?;
        within("awm.ema_decay_rate", self.ema_decay_rate.into(), 0.0..=1.0)?;
        within("awm.ema_decay_max", self.ema_decay_max.into(), 0.0..=0.9999)
    }
}

/// How the log-probability follows from the matching error `ℓ` at time `t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// `−ℓ`.
    Uniform,
    /// `−t·ℓ`.
    T,
    /// `−t²·ℓ`.
    T2,
    /// `−t·√ℓ`, smooth at 0.
    Huber,
    /// `−t·ℓ^p/p`, smooth at 0.
    #[default]
    Ghuber,
}

/// Of what the ratio is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Of each point.
    #[default]
    ExpFirst,
    /// Of each image: the mean of its points' log-probabilities.
    SumFirst,
}

/// How a distance between velocities is weighed over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KlForm {
    /// The same at every time.
    #[default]
    Uniform,
    /// By `1/(2·0.7²·t/(1 − t))`, the variance of Flow-SDE's noise.
    Elbo,
}
