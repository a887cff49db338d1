//! `y = (x + before)·scale + after`, limited to a range: between the numbers of one network and those of the next.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// What is done to every element.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Added first.
    pub before: f32,
    /// Then multiplied by.
    pub scale: f32,
    /// Then added.
    pub after: f32,
    /// Then limited to this range.
    pub limits: [f32; 2],
}

impl Default for Affine {
    fn default() -> Self {
        Self { before: 0.0, scale: 1.0, after: 0.0, limits: [f32::NEG_INFINITY, f32::INFINITY] }
    }
}

/// `map` of every element of `x`.
pub fn forward(x: &Tensor, map: Affine) -> Tensor {
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, map));
    y
}

/// The gradient to `x`, in place: `d`, of the type of `x`, holds that to the result.
pub fn backward(d: &mut Tensor, x: &Tensor, map: Affine) {
    assert_eq!((d.shape(), d.dtype()), (x.shape(), x.dtype()), "affine backward");
    dispatch!(x, backward(d, x, map));
}
