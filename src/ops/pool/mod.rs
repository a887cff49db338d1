//! Average pooling of NHWC images by windows that touch; forward only, in single precision: of rewards.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// The mean of every window of `size` (down, across); what is left over at the right and below is dropped. `x`
/// `[b, h, w, c]`; returns `[b, ⌊h/size⌋, ⌊w/size⌋, c]`.
pub fn average(x: &Tensor, size: [usize; 2]) -> Tensor {
    let &[b, h, w, channels] = x.shape() else { panic!("pool: {x:?}") };
    assert_eq!(x.dtype(), DType::F32, "pool: {x:?}");
    let mut y = x.scratch_like(&[b, h / size[0], w / size[1], channels]);
    dispatch!(y, average(&mut y, x, size));
    y
}
