//! Group normalisation of NCHW images (Wu & He 2018), optionally followed by SiLU.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Tensor, Weight};

/// The parameters of one normalisation.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Factor per channel, `[c]`.
    pub weight: &'a Weight,
    /// Shift per channel, `[c]`.
    pub bias: &'a Weight,
    /// Number of groups of neighbouring channels; divides `c`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// `y = (x - mean) / sqrt(variance + eps) · weight + bias`, mean and variance taken over a group of one image;
/// then `y · sigmoid(y)` if `silu`. `x` `[b, c, ..]`; returns the same shape.
pub fn forward(x: &Tensor, norm: Norm, silu: bool) -> Tensor {
    cpu::forward(x, norm, silu)
}
