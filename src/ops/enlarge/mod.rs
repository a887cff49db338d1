//! NHWC images enlarged by whole factors: pixels repeated, or put in the place that a transposed convolution gives them;
//! forward only, in single precision: of rewards.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// `y + enlarged(x)` into `y`, every pixel of `x` `factor` times in both directions. `x` `[b, h, w, c]`, `y`
/// `[b, h·factor, w·factor, c]`.
pub fn add(y: &mut Tensor, x: &Tensor, factor: usize) {
    check(y, x, factor);
    assert_eq!(y.dim(3), x.dim(3), "enlarge: {x:?} into {y:?}");
    dispatch!(y, add(y, x, factor));
}

/// `enlarged(x)` into the channels of `y` from `channel` on. `x` `[b, h, w, c]`, `y` `[b, h·factor, w·factor, d]`.
pub fn place(y: &mut Tensor, channel: usize, x: &Tensor, factor: usize) {
    check(y, x, factor);
    assert!(channel + x.dim(3) <= y.dim(3), "enlarge: {x:?} to channel {channel} of {y:?}");
    dispatch!(y, place(y, channel, x, factor));
}

/// A 2x2 transposed convolution of stride 2 ends so: `x` `[b, h, w, (2, 2, c)]` to `[b, 2h, 2w, c]`.
pub fn unfold(x: &Tensor) -> Tensor {
    let &[b, h, w, channels] = x.shape() else { panic!("unfold: {x:?}") };
    assert!(channels.is_multiple_of(4) && x.dtype() == DType::F32, "unfold: {x:?}");
    let mut y = x.scratch_like(&[b, 2 * h, 2 * w, channels / 4]);
    dispatch!(y, unfold(&mut y, x));
    y
}

fn check(y: &Tensor, x: &Tensor, factor: usize) {
    let (&[b, h, w, _], &[same, height, width, _]) = (x.shape(), y.shape()) else {
        panic!("enlarge: {x:?} into {y:?}")
    };
    let fits = b == same && [h * factor, w * factor] == [height, width];
    assert!(fits && [x.dtype(), y.dtype()] == [DType::F32; 2], "enlarge: {x:?} {factor} times into {y:?}");
}
