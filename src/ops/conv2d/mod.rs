//! Two-dimensional convolution of NHWC images, also of the image enlarged twofold; and the gradient to the image, which is a
//! convolution too.
//!
//! Every element of the result is one chain of fused multiply-adds over (window row, window column, input channel), cut at
//! the end of every window row and after a fixed length: the same bits for any batch and any number of threads.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::work::{Kind, Work};
use crate::device::{DType, Tensor};
pub(in crate::ops) use cuda::Conv;
#[cfg(test)]
pub(crate) use cuda::in_every_form;

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

/// A weight `[out, in, kh, kw]`, as files have it, in the order of [`forward`]'s chains: `[out, kh, kw, in]`, in its own
/// type.
pub fn arranged(w: &Tensor) -> Tensor {
    let &[outputs, inputs, kh, kw] = w.shape() else { panic!("conv2d: weight {w:?}") };
    let mut out = Tensor::scratch_of(&w.device(), w.dtype(), &[outputs, kh, kw, inputs]);
    dispatch!(w, arrange(&mut out, w));
    out
}

/// A 3x3 weight `[out, in, 3, 3]`, as files have it, added up for each parity (row, column) of the pixels of an enlarged
/// image: `[4, out, 2, 2, in]`, single precision. The windows of a parity meet each pixel of the image itself with the same
/// weights.
pub fn folded(w: &Tensor) -> Tensor {
    let &[outputs, inputs, 3, 3] = w.shape() else { panic!("conv2d: folding weight {w:?}") };
    let mut out = Tensor::scratch(&w.device(), &[4, outputs, 2, 2, inputs]);
    dispatch!(w, fold(&mut out, w));
    out
}

/// A weight `[out, in, kh, kw]`, as files have it, as [`backward`] takes it: `[in, kh, kw, out]`, turned by half a circle, in
/// its own type.
pub fn turned(w: &Tensor) -> Tensor {
    let &[outputs, inputs, kh, kw] = w.shape() else { panic!("conv2d: weight {w:?}") };
    let mut out = Tensor::scratch_of(&w.device(), w.dtype(), &[inputs, kh, kw, outputs]);
    dispatch!(w, turn(&mut out, w));
    out
}

/// A 3x3 weight `[out, in, 3, 3]`, as files have it, as [`doubled_backward`] takes it: `[in, 4, 4, out]`, single precision. A
/// pixel is met by the windows of four rows and columns of the enlarged image, by those of the inner ones twice.
pub fn turned_folded(w: &Tensor) -> Tensor {
    let &[outputs, inputs, 3, 3] = w.shape() else { panic!("conv2d: folding weight {w:?}") };
    let mut out = Tensor::scratch(&w.device(), &[inputs, 4, 4, outputs]);
    dispatch!(w, turn_folded(&mut out, w));
    out
}

/// `y = w * x + bias (+ add)`.
///
/// `x` `[b, h, w, in]`, `w` [`arranged`] `[out, kh, kw, in]`, `bias` `[out]`, `add` as the result; returns
/// `[b, h', w', out]`. On the CPU, weights stored in half precision are widened; on a GPU they and the image are multiplied
/// in the narrower type of both (the image's, if both are half precision) and summed in single precision.
pub fn forward(x: &Tensor, w: &Tensor, bias: &Tensor, window: Window, add: Option<&Tensor>) -> Tensor {
    forward_to(x.dtype(), x, w, bias, window, add)
}

/// [`forward`] with a result of type `dtype`: that of `x`, or single precision.
pub fn forward_to(dtype: DType, x: &Tensor, w: &Tensor, bias: &Tensor, window: Window, add: Option<&Tensor>) -> Tensor {
    let (&[b, height, width, inputs], &[outputs, kh, kw, per_window]) = (x.shape(), w.shape()) else {
        panic!("conv2d: x {x:?}, weight {w:?}")
    };
    let ([left, right, top, bottom], s) = (window.padding, window.stride);
    let fits =
        inputs == per_window && bias.len() == outputs && height + top + bottom >= kh && width + left + right >= kw;
    assert!(fits && s > 0, "conv2d: x {x:?}, weight {w:?}, {window:?}");
    let out = [b, (height + top + bottom - kh) / s + 1, (width + left + right - kw) / s + 1, outputs];
    let mut y = Tensor::scratch_of(&x.device(), dtype, &out);
    let can_add = add.is_none_or(|add| add.shape() == out && add.dtype() == dtype);
    assert!(can_add, "conv2d: add {add:?} to {dtype:?}");
    assert!(dtype == x.dtype() || dtype == DType::F32, "conv2d: {x:?} to {dtype:?}");
    let work = work(x, w, &y, kh * kw * inputs, add);
    dispatch!(x, forward(&mut y, x, w, bias, window, add), [work]);
    y
}

/// The 3x3 convolution of an image enlarged twofold (every pixel twice in both directions), `y = w * enlarged(x) + bias`,
/// as four 2x2 convolutions of the image itself: 16 products instead of 36 per pixel.
///
/// `x` `[b, h, w, in]`, `w` [`folded`] `[4, out, 2, 2, in]`, `bias` `[out]`; returns `[b, 2h, 2w, out]`.
pub fn doubled(x: &Tensor, w: &Tensor, bias: &Tensor) -> Tensor {
    let (&[b, height, width, inputs], &[4, outputs, 2, 2, per_window]) = (x.shape(), w.shape()) else {
        panic!("doubling: x {x:?}, weight {w:?}")
    };
    assert!(inputs == per_window && bias.len() == outputs, "doubling: x {x:?}, weight {w:?}, bias {bias:?}");
    let mut y = x.scratch_like(&[b, 2 * height, 2 * width, outputs]);
    let work = work(x, w, &y, 4 * inputs, None);
    dispatch!(x, doubled(&mut y, x, w, bias), [work]);
    y
}

/// The gradient to the image of a convolution that keeps the size (`add` plus it, if there is one), if `dy` `[b, h, w, out]` is
/// that to the result; `w` [`turned`] `[in, kh, kw, out]`, odd sides. Returns `[b, h, w, in]`.
pub fn backward(dy: &Tensor, w: &Tensor, add: Option<&Tensor>) -> Tensor {
    let (bias, sides) = (Tensor::zeros(&dy.device(), &[w.dim(0)]), [w.dim(1), w.dim(2)]);
    assert!(sides[0] == sides[1] && !sides[0].is_multiple_of(2), "conv2d backward: weight {w:?}");
    forward(dy, w, &bias, Window::same(sides[0]), add)
}

/// The gradient to the image of [`doubled`], if `dy` `[b, 2h, 2w, out]` is that to the result; `w` [`turned_folded`]. Returns
/// `[b, h, w, in]`.
pub fn doubled_backward(dy: &Tensor, w: &Tensor) -> Tensor {
    assert_eq!(w.shape()[1..3], [4, 4], "doubling backward: weight {w:?}");
    forward(dy, w, &Tensor::zeros(&dy.device(), &[w.dim(0)]), Window { stride: 2, padding: [1; 4] }, None)
}

/// The work of `y` whose elements are sums of `k` products.
fn work(x: &Tensor, w: &Tensor, y: &Tensor, k: usize, add: Option<&Tensor>) -> Work {
    let dtype = if x.dtype() == DType::F32 { w.dtype() } else { x.dtype() };
    let read = x.bytes() + w.bytes() + add.map_or(0, Tensor::bytes);
    Work::of(Kind::Convolution, dtype, [y.rows(), y.width(), k]).moving(read, y.bytes())
}
