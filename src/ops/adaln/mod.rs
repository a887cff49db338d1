//! Adaptive layer norm (Peebles and Xie 2023, "DiT"): a layer norm without parameters, then a scale and a shift
//! that depend on the sample's time and text.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// As in diffusers' `AdaLayerNormZero`.
pub const EPS: f32 = 1e-6;

/// `y = layer_norm(x)·(1 + scale) + shift`.
///
/// `x` `[b, n, d]`; `modulation` `[b, chunks·d]`, of which chunk `shift` and chunk `scale` are used.
pub fn forward(x: &Tensor, modulation: &Tensor, shift: usize, scale: usize) -> Tensor {
    cpu::forward(x, modulation, shift, scale)
}

/// Adds the gradient to `x` to `dx`. Scale and shift come from frozen layers and get none.
///
/// `dx`, `dy`, `x` `[b, n, d]`, `modulation` and `scale` as in [`forward`].
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, modulation: &Tensor, scale: usize) {
    cpu::backward(dx, dy, x, modulation, scale);
}
