//! Group normalisation of NHWC images (Wu & He 2018), optionally followed by SiLU.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// The parameters of one normalisation.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Factor per channel, `[c]`.
    pub weight: &'a Tensor,
    /// Shift per channel, `[c]`.
    pub bias: &'a Tensor,
    /// Number of groups of neighbouring channels; divides `c`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// `y = (x - mean) / sqrt(variance + eps) · weight + bias`, mean and variance taken over a group of one image;
/// then `y · sigmoid(y)` if `silu`. `x` `[b, .., c]`; returns the same shape.
pub fn forward(x: &Tensor, norm: Norm, silu: bool) -> Tensor {
    let c = x.width();
    let fits = norm.weight.len() == c && norm.bias.len() == c && norm.groups > 0 && c.is_multiple_of(norm.groups);
    assert!(fits, "group norm: x {x:?}, {} groups, weight {:?}", norm.groups, norm.weight);
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, norm, silu));
    y
}
