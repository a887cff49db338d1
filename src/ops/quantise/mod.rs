//! Decoded images to bytes.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// Images in -1..1 as 8 bits of the same shape, to the byte what the `VaeImageProcessor` of diffusers makes of them:
/// limited to the range, rounded half to even.
pub fn forward(images: &Tensor) -> Tensor {
    let mut out = Tensor::scratch_of(&images.device(), DType::U8, images.shape());
    dispatch!(images, forward(&mut out, images));
    out
}
