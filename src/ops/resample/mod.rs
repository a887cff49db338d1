//! Planes of numbers in another size, cut or surrounded by zeros, as PyTorch and torchvision make them; and the gradient of it.

mod axis;
mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

pub use axis::{Axis, Filter};
pub(in crate::ops) use axis::{antialiased, cubic};

/// `(Σ row weight · Σ column weight · planes − mean)/std` per channel: planes `[b, 3, h, w]` as `[b, 3, height, width]`, where
/// `rows` says which of the `h` rows make each of `height`, and `columns` likewise. Computed in f32, along the rows first.
///
/// The gradient to `planes` is the same of the gradient to the result, with both axes [transposed](Axis::transposed) and
/// without a mean.
pub fn forward(planes: &Tensor, rows: &Axis, columns: &Axis, mean: [f64; 3], std: [f64; 3]) -> Tensor {
    let &[b, 3, h, w] = planes.shape() else { panic!("resample: {planes:?}") };
    assert!(planes.dtype() == DType::F32 && rows.from() == h && columns.from() == w, "resample: {planes:?}");
    let mut out = Tensor::scratch(&planes.device(), &[b, 3, rows.to(), columns.to()]);
    dispatch!(planes, forward(&mut out, planes, rows, columns, mean, std));
    out
}
