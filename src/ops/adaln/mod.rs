//! Adaptive layer norm (Peebles and Xie 2023, "DiT"): a layer norm without parameters, then a scale and a shift
//! that depend on the sample's time and text.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// As in diffusers' `AdaLayerNormZero`.
pub const EPS: f32 = 1e-6;

/// One vector per sample out of several that lie side by side.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// `[b, chunks·d]`.
    pub modulation: &'a Tensor,
    /// Which of the chunks.
    pub index: usize,
}

impl Chunk<'_> {
    /// Fails unless there is such a chunk of width `d` for each of `b` samples.
    pub(in crate::ops) fn check(&self, b: usize, d: usize) {
        let m = self.modulation;
        let fits = m.dim(0) == b && m.width().is_multiple_of(d) && self.index < m.width() / d;
        assert!(fits, "chunk {} of {m:?} for {b} samples of width {d}", self.index);
    }
}

/// `y = layer_norm(x)·(1 + scale) + shift`. `x` `[b, n, d]`.
pub fn forward(x: &Tensor, shift: Chunk, scale: Chunk) -> Tensor {
    [shift, scale].iter().for_each(|c| c.check(x.dim(0), x.dim(2)));
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, shift, scale));
    y
}

/// Adds the gradient to `x` to `dx`. Scale and shift come from frozen layers and get none.
///
/// `dx`, `dy`, `x` `[b, n, d]`, `scale` as in [`forward`].
pub fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk) {
    scale.check(x.dim(0), x.dim(2));
    assert!(dx.shape() == x.shape() && dy.shape() == x.shape(), "adaln backward: dx {dx:?}, dy {dy:?}, x {x:?}");
    dispatch!(x, backward(dx, dy, x, scale, None), [Work::stream(3 * x.bytes(), x.bytes())]);
}

/// [`backward`], and the gate's gradient of what `dx` has become, `gate·dx` as [`gate::backward`](super::gate::backward) gives
/// it: where a gated sum comes right before, its gradient is read once less.
pub fn backward_gated(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk, gate: Chunk) -> Tensor {
    [scale, gate].iter().for_each(|c| c.check(x.dim(0), x.dim(2)));
    assert!(dx.shape() == x.shape() && dy.shape() == x.shape(), "adaln backward: dx {dx:?}, dy {dy:?}, x {x:?}");
    let mut gated = dx.scratch_like(dx.shape());
    let work = Work::stream(3 * x.bytes(), 2 * x.bytes());
    dispatch!(x, backward(dx, dy, x, scale, Some((&mut gated, gate))), [work]);
    gated
}
