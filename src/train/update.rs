//! The loss and its gradient at training points, and one optimiser step.

use crate::algorithms::{Algorithm, Points, Velocities};
use crate::device::Tensor;
use crate::models::lora::Adapter;
use crate::models::mmdit::{Checkpointing, Mmdit};
use crate::models::text::PromptEmbeds;
use crate::rollout::schedule::Schedule;

/// What evaluates a training point: the model and the two policies on it.
#[derive(Clone, Copy)]
pub struct Policies<'a> {
    /// The frozen base.
    pub model: &'a Mmdit,
    /// Maps times to the model's time input.
    pub schedule: &'a Schedule,
    /// The trained adapter.
    pub theta: &'a Adapter,
    /// The lagged adapter.
    pub old: &'a Adapter,
    /// What the forward keeps.
    pub checkpointing: Checkpointing,
}

/// The velocities at some points, `[n, channels, h, w]` each.
pub struct Step {
    /// The points' share of the loss.
    pub loss: f64,
    /// The trained policy's velocity.
    pub theta: Tensor,
    /// The base's.
    pub reference: Tensor,
    /// The lagged policy's.
    pub old: Tensor,
}

/// Adds to `grads` the gradient of the loss at `points`, which are `n` of `total`; `prompts` has one row per point.
pub fn accumulate(
    p: Policies,
    algorithm: &dyn Algorithm,
    points: &Points,
    prompts: &PromptEmbeds,
    total: usize,
    grads: &mut Adapter,
) -> Step {
    let x = points.noised();
    let timestep: Vec<f32> = points.t.iter().map(|t| p.schedule.timestep(*t)).collect();
    let condition = prompts.condition(&timestep);
    let reference = p.model.forward(&x, condition, None);
    let old = p.model.forward(&x, condition, Some(p.old));
    let (theta, saved) = p.model.forward_saved(&x, condition, p.theta, p.checkpointing);
    let mut dv = Tensor::scratch(theta.shape());
    let velocities = Velocities { theta: &theta, reference: &reference, old: &old };
    let loss = algorithm.loss(&velocities, points, total, &mut dv);
    p.model.backward(&dv, saved, p.theta, grads, false);
    Step { loss, theta, reference, old }
}
