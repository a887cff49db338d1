//! Layer normalisation over the last axis (Ba et al. 2016), population variance.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(super) use cpu::statistics;

use super::dispatch;
use crate::device::Tensor;

/// `y = (x − mean)/√(var + eps)·weight + bias` per row. `x` `[.., d]`, `weight` and `bias` `[d]`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Tensor {
    let d = x.width();
    assert!(weight.shape() == [d] && bias.shape() == [d], "layer norm: {x:?}, weight {weight:?}, bias {bias:?}");
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, weight, bias, eps));
    y
}

/// Adds the gradient to `x` to `dx`; weight and bias are frozen and get none. `dx`, `dy`, `x` `[.., d]`, of one type.
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let alike = |t: &Tensor| t.shape() == x.shape() && t.dtype() == x.dtype();
    let fits = alike(dx) && alike(dy) && weight.shape() == [x.width()];
    assert!(fits, "layer norm backward: dx {dx:?}, dy {dy:?}, x {x:?}, weight {weight:?}");
    dispatch!(x, backward(dx, dy, x, weight, eps));
}
