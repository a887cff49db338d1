//! The forward process of flow matching (Lipman et al. 2023): clean latents with noise mixed in.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// `x_t = (1 − t)·x0 + t·noise`, with one `t` in 0..1 per outermost entry; returns the shape of `x0`.
pub fn forward(x0: &Tensor, noise: &Tensor, t: &[f32]) -> Tensor {
    assert!(noise.shape() == x0.shape() && t.len() == x0.dim(0), "noising: x0 {x0:?}, noise {noise:?}, {} t", t.len());
    let mut x = x0.scratch_like(x0.shape());
    dispatch!(x0, forward(&mut x, x0, noise, t));
    x
}
