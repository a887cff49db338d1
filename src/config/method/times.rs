//! Where the times of training points come from.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::resolved::at_least_one;

/// Where the times of training points come from; all but the last stratified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeType {
    /// The rollout's steps but the first.
    #[default]
    DiscreteWoInit,
    /// The rollout's steps.
    Discrete,
    /// The first step, and strata of the others.
    DiscreteWithInit,
    /// Logit-normal, shifted, at least 0.01.
    LogitNormal,
    /// Uniform over 0.2 to 1, shifted.
    Uniform,
    /// The thousand levels of training, shifted, one by one: each is as likely as the logistic function of a normal number is to
    /// fall on it.
    LogitNormal1000,
}

/// The times of an image, a pair or a group, as the config has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// Where they come from.
    pub time_type: TimeType,
    /// How many.
    pub count: usize,
    /// From which part of the way from noise, 0, to image, 1.
    pub range: [f64; 2],
}

impl Times {
    /// Checks the keys of `table`.
    pub(super) fn check(&self, table: &str) -> Result<()> {
        at_least_one(&format!("{table}.num_timesteps"), self.count)?;
        let [first, end] = self.range;
        ensure!(
            0.0 <= first && first < end && end <= 1.0,
            "{table}.timestep_range is [{first}, {end}], expected two numbers from 0 to 1, the second larger"
        );
        Ok(())
    }
}
