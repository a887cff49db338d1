//! The keys of supervised fine-tuning on a policy's own images.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::preference::check_reference;
use super::{Method, TimeType, Times};
use crate::config::resolved::within;

/// SFT on the best image of each prompt, OnlineSFT, and reward-weighted regression (RWR): one table each, of these keys, as
/// flow_grpo has them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftKeys {
    /// Times per chosen image and epoch.
    pub num_timesteps: usize,
    /// Where they come from.
    pub time_type: TimeType,
    /// Which part of the way from noise to image they come from.
    pub timestep_range: [f64; 2],
    /// Optimiser steps of an epoch, each at its share of the times of all chosen images.
    pub updates_per_epoch: usize,
    /// Whether prompts whose images all have the same reward are left out; else all of their images are chosen.
    pub skip_equal_groups: bool,
    /// The policy that samples becomes the trained one every this many optimiser steps; `sft` keeps it, and `rwr` does if this is
    /// left out. Left out, it is 40 for `online_sft`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_update_step: Option<u64>,
}

impl Default for SftKeys {
    /// The published settings for GenEval.
    fn default() -> Self {
        Self {
            num_timesteps: 39,
            time_type: TimeType::LogitNormal1000,
            timestep_range: [0.0, 1.0],
            updates_per_epoch: 1,
            skip_equal_groups: true,
            ref_update_step: None,
        }
    }
}

impl SftKeys {
    /// The times of an image.
    pub fn times(&self) -> Times {
        Times { time_type: self.time_type, count: self.num_timesteps, range: self.timestep_range }
    }

    pub(super) fn check(&self, method: Method) -> Result<()> {
        let table = method.name();
        self.times().check(table)?;
        within(&format!("{table}.updates_per_epoch"), self.updates_per_epoch as f64, 1.0..=self.num_timesteps as f64)?;
        check_reference(method, self.ref_update_step)
    }
}
