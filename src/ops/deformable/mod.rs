//! Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR): every token looks at a few points of each level of
//! a pyramid of images, at places it has computed itself; in single precision.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// Where the tokens of a pyramid lie: the levels' images, `[height, width]` each, row by row, one level after another.
#[derive(Clone, Copy)]
pub struct Pyramid<'a>(pub &'a [[usize; 2]]);

impl Pyramid<'_> {
    /// Tokens of all levels together.
    pub fn tokens(&self) -> usize {
        self.0.iter().map(|[h, w]| h * w).sum()
    }
}

/// `out = Σ softmax(weights)·values(place)` per head, over all points of all levels, where values between pixels are
/// bilinear and those outside of an image zero (`grid_sample` of torch, `align_corners=False`).
///
/// `values` `[b, n, heads·d]`; `offsets` `[b, n, heads·levels·points·2]`, in pixels (x, y) of the level looked at, from where
/// the token lies in its own; `weights` `[b, n, heads·levels·points]`, before the softmax. Returns the shape of `values`.
pub fn forward(values: &Tensor, offsets: &Tensor, weights: &Tensor, pyramid: Pyramid, heads: usize) -> Tensor {
    let (&[b, n, width], per_token) = (values.shape(), weights.width()) else { panic!("deformable: {values:?}") };
    let fits =
        n == pyramid.tokens() && width.is_multiple_of(heads) && per_token.is_multiple_of(heads * pyramid.0.len());
    let alike = weights.shape() == [b, n, per_token] && offsets.shape() == [b, n, 2 * per_token];
    let alike = alike && [values, offsets, weights].iter().all(|t| t.dtype() == DType::F32);
    assert!(fits && alike, "deformable: {heads} heads of {values:?}, offsets {offsets:?}, weights {weights:?}");
    let mut out = values.scratch_like(values.shape());
    dispatch!(values, forward(&mut out, values, offsets, weights, pyramid, heads));
    out
}
