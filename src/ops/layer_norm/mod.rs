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
