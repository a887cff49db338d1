//! Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019).

mod cpu;
#[cfg(test)]
mod tests;

pub(super) use cpu::{backward_row, forward_row};

use crate::device::{Tensor, Weight};

/// `y = x/√(mean(x²) + eps)·weight` per row. `x` `[.., d]`, `weight` `[d]`.
pub fn forward(x: &Tensor, weight: &Weight, eps: f32) -> Tensor {
    cpu::forward(x, weight, eps)
}
