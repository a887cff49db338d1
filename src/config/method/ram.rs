//! The keys of RAM.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::resolved::{at_least_one, within};

/// Reinforce Adjoint Matching (arXiv 2605.10759).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RamKeys {
    /// `m`: how strongly the reward tilts the policy.
    pub reward_multiplier: f32,
    /// Training points per image.
    #[serde(default = "RamKeys::num_noisings")]
    pub num_noisings: usize,
    /// `released` measures the correction from the lagged policy, `paper` from the trained one.
    #[serde(default)]
    pub form: Form,
    /// Density of times `p(t) ∝ t^power`.
    #[serde(default = "RamKeys::timestep_power")]
    pub timestep_power: f32,
    /// The times there are: `continuous` is the paper's, the others draw from a grid with that density as weights, as the
    /// released code does: `linear1000`, `scheduler1000` (the noise levels of training), `rollout` (those of the rollout).
    #[serde(default)]
    pub timestep_grid: Grid,
    /// Added to the standard deviation of the rewards.
    #[serde(default = "RamKeys::advantage_eps")]
    pub advantage_eps: f64,
    /// The lagged policy's decay grows by this each update …
    #[serde(default = "RamKeys::old_decay_rate")]
    pub old_decay_rate: f32,
    /// … up to this.
    #[serde(default = "RamKeys::old_decay_max")]
    pub old_decay_max: f32,
}

impl RamKeys {
    /// The published settings; each reward has a multiplier of its own.
    pub(crate) fn published(reward_multiplier: f32) -> Self {
        Self {
            reward_multiplier,
            num_noisings: Self::num_noisings(),
            form: Form::default(),
            timestep_power: Self::timestep_power(),
            timestep_grid: Grid::default(),
            advantage_eps: Self::advantage_eps(),
            old_decay_rate: Self::old_decay_rate(),
            old_decay_max: Self::old_decay_max(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        at_least_one("ram.num_noisings", self.num_noisings)?;
        within("ram.timestep_power", self.timestep_power.into(), 0.0..=10.0)?;
        within("ram.old_decay_max", self.old_decay_max.into(), 0.0..=0.9999)?;
        within("ram.old_decay_rate", self.old_decay_rate.into(), 0.0..=1.0)?;
        within("ram.advantage_eps", self.advantage_eps, 0.0..=1.0)?;
        let m = self.reward_multiplier;
        ensure!(m.is_finite() && m != 0.0, "ram.reward_multiplier is {m}, expected a number other than 0");
        Ok(())
    }

    fn num_noisings() -> usize {
        8
    }
    fn timestep_power() -> f32 {
        1.0
    }
    fn advantage_eps() -> f64 {
        1e-4
    }
    fn old_decay_rate() -> f32 {
        0.01
    }
    fn old_decay_max() -> f32 {
        0.9
    }
}

/// Which velocity the correction is measured from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The lagged policy's: `target = v_ref + m·A·(y − v_old)`, as the released code has it.
    #[default]
    Released,
    /// The trained policy's own, not differentiated: `target = v_ref + m·A·(y − v_θ)` (equation 17).
    Paper,
}

/// What times are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grid {
    /// Every time in (0, 1).
    #[default]
    Continuous,
    /// 1/1000, 2/1000, …, 1.
    Linear1000,
    /// The noise levels the model was trained with: the same, moved by the scheduler's static shift.
    Scheduler1000,
    /// The noise levels that a rollout visits.
    Rollout,
}
