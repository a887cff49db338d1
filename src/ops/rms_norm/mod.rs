//! Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019); of queries and keys too, whose heads are
//! the last axis of the same numbers in another shape.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// `y = x/√(mean(x²) + eps)·weight` per row of `weight`'s width `d`, of which the last axis of `x` is a multiple.
/// Returns the shape of `x`.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
    check(x, weight);
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x, weight, eps, None));
    y
}

/// [`forward`] in place. `1/√(mean(x²) + eps)` of as many rows of the weight's width as it has numbers goes to
/// `inverse`, which is in single precision.
pub fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    check(x, weight);
    dispatch!(x, forward_in_place(x, weight, eps, inverse));
}

/// [`forward`] into `y`, with `inverse` as in [`forward_in_place`].
pub fn forward_into(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32, inverse: &mut Tensor) {
    check(x, weight);
    assert_eq!((y.shape(), y.dtype()), (x.shape(), x.dtype()), "rms norm");
    dispatch!(x, forward(y, x, weight, eps, Some(inverse)));
}

/// What the forward gave, bit for bit, from what it kept of it.
pub fn forward_again(x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Tensor {
    check_inverse(x, weight, inverse);
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward_again(&mut y, x, weight, inverse));
    y
}

/// The gradient to `x`, in place: `d` holds `dy` and becomes `dx = r·(w·dy − x·r²·mean(w·dy·x))` with
/// `r = 1/√(mean(x²) + eps)` of every row, `inverse`. `x` is the input of the forward; the frozen weight gets none.
pub fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    check_inverse(x, weight, inverse);
    assert_eq!(d.shape(), x.shape(), "rms norm backward");
    dispatch!(d, backward(d, x, weight, inverse), [Work::stream(2 * d.bytes() + inverse.bytes(), d.bytes())]);
}

/// Where `r` of every row goes: `[.., heads]`, with the axes of `x` before the last.
pub fn room_for_inverse(x: &Tensor, weight: &Tensor) -> Tensor {
    check(x, weight);
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = x.width() / weight.width();
    Tensor::scratch(&x.device(), &shape)
}

pub(super) fn check(x: &Tensor, weight: &Tensor) {
    let d = weight.width();
    assert!(weight.shape() == [d] && x.width().is_multiple_of(d), "rms norm: {x:?}, weight {weight:?}");
}

fn check_inverse(x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    check(x, weight);
    assert_eq!(inverse.len() * weight.width(), x.len(), "rms norm: {x:?}, 1/rms {inverse:?}");
}
