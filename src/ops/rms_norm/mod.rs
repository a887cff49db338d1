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
    dispatch!(x, forward(&mut y, x, weight, eps));
    y
}

/// [`forward`] in place.
pub fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32) {
    check(x, weight);
    dispatch!(x, forward_in_place(x, weight, eps));
}

/// The gradient to `x`, in place: `d` holds `dy` and becomes `dx = r·(w·dy − x·r²·mean(w·dy·x))` with
/// `r = 1/√(mean(x²) + eps)`. `x` is the input of the forward; the frozen weight gets none.
pub fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    check(x, weight);
    assert_eq!(d.shape(), x.shape(), "rms norm backward");
    dispatch!(d, backward(d, x, weight, eps), [Work::stream(2 * d.bytes(), d.bytes())]);
}

fn check(x: &Tensor, weight: &Tensor) {
    let d = weight.width();
    assert!(weight.shape() == [d] && x.width().is_multiple_of(d), "rms norm: {x:?}, weight {weight:?}");
}
