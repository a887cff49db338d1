//! Two-dimensional convolution of NCHW images, also of the image enlarged twofold; forward only.
//!
//! Every element of the result is one chain of fused multiply-adds over (input channel, window row, window column)
//! in the order the weight stores them, cut into chunks of a fixed length: the same bits for any batch and any
//! number of threads.

mod cpu;
mod layout;
#[cfg(test)]
mod tests;
mod tile;

use crate::device::{Tensor, Weight};

/// How the window moves over the image.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Distance of neighbouring windows.
    pub stride: usize,
    /// Zeros added left, right, above and below (the order of torch's `F.pad`).
    pub padding: [usize; 4],
}

impl Window {
    /// The size stays: a `kernel x kernel` window (odd) at every pixel.
    pub fn same(kernel: usize) -> Self {
        Self { stride: 1, padding: [kernel / 2; 4] }
    }

    /// The size halves: stride 2, zeros only at the right and below (diffusers' `Downsample2D` with padding 0).
    pub fn halving() -> Self {
        Self { stride: 2, padding: [0, 1, 0, 1] }
    }
}

/// `y = w * x + bias (+ add)`.
///
/// `x` `[b, in, h, w]`, `w` `[out, in, kh, kw]` or, for a 1x1 window, `[out, in]`, `bias` `[out]`, `add` as the
/// result; returns `[b, out, h', w']`. Weights stored in half precision are widened, not the image narrowed.
pub fn forward(x: &Tensor, w: &Weight, bias: Option<&Weight>, window: Window, add: Option<&Tensor>) -> Tensor {
    cpu::forward(x, w, bias, window, add)
}

/// The 3x3 convolution of an image enlarged twofold (every pixel twice in both directions), `y = w * enlarged(x) + bias`.
///
/// Computed as four 2x2 convolutions of the image itself, one per parity of row and column of the result: the windows of
/// a parity meet each pixel with the same weights, which are added up first. 16 products instead of 36 per pixel.
/// `x` `[b, in, h, w]`, `w` `[out, in, 3, 3]`, `bias` `[out]`; returns `[b, out, 2h, 2w]`.
pub fn doubled(x: &Tensor, w: &Weight, bias: Option<&Weight>) -> Tensor {
    cpu::doubled(x, &cpu::fold(w), bias)
}
