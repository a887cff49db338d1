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
    check(x, norm);
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, norm, silu));
    y
}

/// Adds the gradient to `x` of [`forward`] to `dx`, if `dy` is that to the result; weight and bias are frozen and get none. `dx`,
/// `dy`, `x` `[b, .., c]`.
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, norm: Norm, silu: bool) {
    check(x, norm);
    let alike = |t: &Tensor| t.shape() == x.shape() && t.dtype() == x.dtype();
    assert!(alike(dx) && alike(dy), "group norm backward: dx {dx:?}, dy {dy:?}, x {x:?}");
    dispatch!(x, backward(dx, dy, x, norm, silu));
}

fn check(x: &Tensor, norm: Norm) {
    let c = x.width();
    let fits = norm.weight.len() == c && norm.bias.len() == c && norm.groups > 0 && c.is_multiple_of(norm.groups);
    assert!(fits, "group norm: x {x:?}, {} groups, weight {:?}", norm.groups, norm.weight);
}
