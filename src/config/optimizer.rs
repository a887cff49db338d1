//! The keys of `[optimizer]`.

use serde::{Deserialize, Serialize};

/// AdamW.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Learning rate: the highest, where it changes.
    pub lr: f64,
    /// How it changes over the run's optimiser updates, `num_epochs` times those of an epoch, as diffusers' `get_scheduler`
    /// has it: `constant`; `linear`, in a line to 0 at the end; `cosine`, along half a cosine to 0. A run that is resumed with
    /// another `num_epochs` goes on with the schedule of a run of that length.
    pub schedule: LrSchedule,
    /// Updates over which the learning rate first rises in a line from 0, so that the first of them moves nothing.
    pub warmup: u32,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment; RAM's 0.99 is less than the usual 0.999.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The gradient is scaled down to this norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// A step whose gradient norm is more than this many times the running mean of those before is left out; 0: none is.
    pub max_grad_outlier: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            lr: 3e-4,
            schedule: LrSchedule::Constant,
            warmup: 0,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 1e-4,
            eps: 1e-8,
            max_grad_norm: 0.0,
            max_grad_outlier: 0.0,
        }
    }
}

impl Optimizer {
    /// How the learning rate goes, in words.
    pub(super) fn describe(&self) -> String {
        let way = match self.schedule {
            LrSchedule::Constant => "constant",
            LrSchedule::Linear => "linear to 0",
            LrSchedule::Cosine => "cosine to 0",
        };
        match self.warmup {
            0 => format!("{:e}, {way}", self.lr),
            n => format!("{:e}, {way} after {n} updates of warm-up", self.lr),
        }
    }
}

/// How the learning rate changes, after a warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Not at all.
    #[default]
    Constant,
    /// In a line to 0.
    Linear,
    /// Along half a cosine to 0.
    Cosine,
}
