//! Layer normalisation over the last axis (Ba et al. 2016), population variance.

mod cpu;
#[cfg(test)]
mod tests;

pub(super) use cpu::moments;

use crate::device::{Tensor, Weight};

/// `y = (x − mean)/√(var + eps)·weight + bias` per row. `x` `[.., d]`, `weight` and `bias` `[d]`.
pub fn forward(x: &Tensor, weight: Option<&Weight>, bias: Option<&Weight>, eps: f32) -> Tensor {
    cpu::forward(x, weight, bias, eps)
}
