//! Depthwise convolution of NHWC images: every channel has a window of its own; forward only, in single precision: of
//! rewards.
//!
//! Every element of the result is one chain of fused multiply-adds over (window row, window column): the same bits for any
//! batch, any number of threads and any device.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::pointwise::Bend;
use super::{conv2d, dispatch};
use crate::device::{DType, Tensor};

/// The sides of the windows there are.
pub const KERNELS: [usize; 2] = [3, 5];

/// A weight `[channels, 1, k, k]`, as files have it, in the order of [`forward`]'s chains: `[k·k, channels]`.
pub fn arranged(w: &Tensor) -> Tensor {
    let &[channels, 1, k, same] = w.shape() else { panic!("depthwise: weight {w:?}") };
    assert!(k == same, "depthwise: weight {w:?}");
    // As the taps of a single channel of a result.
    conv2d::arranged(&w.clone().reshape(&[1, channels, k, k])).reshape(&[k * k, channels])
}

/// `y = bend(w * x + bias)` with half a window of zeros around the image, and windows `stride` (down, across; 1 or 2)
/// apart.
///
/// `x` `[b, h, w, channels]`, `w` [`arranged`], `bias` `[channels]`; returns `[b, ⌈h/stride⌉, ⌈w/stride⌉, channels]`.
pub fn forward(x: &Tensor, w: &Tensor, bias: &Tensor, stride: [usize; 2], bend: impl Into<Bend>) -> Tensor {
    let (&[b, height, width, channels], &[taps, same]) = (x.shape(), w.shape()) else {
        panic!("depthwise: x {x:?}, weight {w:?}")
    };
    let fits = channels == same && bias.len() == channels && KERNELS.iter().any(|k| k * k == taps);
    assert!([x, w, bias].iter().all(|t| t.dtype() == DType::F32), "depthwise: x {x:?}, weight {w:?}, bias {bias:?}");
    assert!(fits && stride.iter().all(|s| (1..=2).contains(s)), "depthwise: x {x:?}, weight {w:?}, bias {bias:?}");
    let mut y = x.scratch_like(&[b, height.div_ceil(stride[0]), width.div_ceil(stride[1]), channels]);
    dispatch!(y, forward(&mut y, x, w, bias, stride, bend.into()));
    y
}
