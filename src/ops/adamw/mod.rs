//! AdamW (Loshchilov & Hutter 2019) over flat buffers, with the order of operations of `torch.optim.AdamW`.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// The optimiser's settings, called as in `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Decoupled weight decay: each step first shrinks every parameter by `lr·weight_decay` of itself.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// What AdamW remembers between steps.
#[derive(Clone)]
pub struct Moments {
    /// Steps taken so far.
    pub steps: u64,
    /// Decayed mean of gradients, shaped as the parameters.
    pub exp_avg: Tensor,
    /// Decayed mean of squared gradients, shaped as the parameters.
    pub exp_avg_sq: Tensor,
}

impl Moments {
    /// No step taken yet.
    pub fn zeros_like(params: &Tensor) -> Self {
        let zeros = || Tensor::zeros(&params.device(), params.shape());
        Self { steps: 0, exp_avg: zeros(), exp_avg_sq: zeros() }
    }
}

/// One step of `params` along `factor·grads`, a factor other than 1 being that of clipping.
pub fn step(settings: &AdamW, params: &mut Tensor, grads: &Tensor, factor: f32, moments: &mut Moments) {
    let all = [grads, &moments.exp_avg, &moments.exp_avg_sq];
    assert!(all.iter().all(|t| t.shape() == params.shape()), "adamw: {params:?}, {all:?}");
    moments.steps += 1;
    // As in PyTorch, these are computed in f64 and rounded where they meet f32 elements.
    let (n, s) = (moments.steps as f64, settings);
    let numbers = Numbers {
        factor,
        step_size: (-(s.lr / (1.0 - s.beta1.powf(n)))) as f32,
        correction: (1.0 - s.beta2.powf(n)).sqrt() as f32,
        shrink: (1.0 - s.lr * s.weight_decay) as f32,
        beta1_rest: (1.0 - s.beta1) as f32,
        beta2: s.beta2 as f32,
        beta2_rest: (1.0 - s.beta2) as f32,
        eps: s.eps as f32,
    };
    dispatch!(params, step(params, grads, moments, numbers), [Work::stream(4 * params.bytes(), 3 * params.bytes())]);
}

/// The scalars of one step.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Numbers {
    factor: f32,
    step_size: f32,
    correction: f32,
    shrink: f32,
    beta1_rest: f32,
    beta2: f32,
    beta2_rest: f32,
    eps: f32,
}
