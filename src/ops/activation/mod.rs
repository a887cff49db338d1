//! Pointwise non-linearities.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cpu::{apply, gelu_tanh_gradient};

use super::dispatch;
use crate::device::Tensor;
use crate::device::work::Work;

/// The non-linearities there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715 x³)))`: GELU's tanh form.
    GeluTanh,
    /// `x/2·(1 + erf(x/√2))`: GELU as defined.
    GeluErf,
    /// `x·sigmoid(1.702 x)`: the approximation OpenAI's CLIP was trained with.
    QuickGelu,
    /// `x·sigmoid(x)`.
    Silu,
}

/// The activation of every element, in place.
pub fn forward(x: &mut Tensor, activation: Activation) {
    dispatch!(x, forward(x, activation), [Work::stream(x.bytes(), x.bytes())]);
}

/// The gradient of [`Activation::GeluTanh`], in place: `d` holds `dy` and becomes `dx`; `x` is the input of the forward.
pub fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    assert_eq!(d.shape(), x.shape(), "gelu backward");
    dispatch!(d, gelu_tanh_backward(d, x), [Work::stream(2 * d.bytes(), d.bytes())]);
}

/// The gradient of any activation, in place, as [`gelu_tanh_backward`].
pub fn backward(d: &mut Tensor, x: &Tensor, activation: Activation) {
    assert_eq!(d.shape(), x.shape(), "{activation:?} backward");
    dispatch!(d, backward(d, x, activation), [Work::stream(2 * d.bytes(), d.bytes())]);
}

/// `x·y` elementwise, into `x`.
pub fn multiply(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "multiply");
    dispatch!(x, multiply(x, y), [Work::stream(2 * x.bytes(), x.bytes())]);
}

/// `x + y` elementwise, into `x`.
pub fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "add");
    dispatch!(x, add(x, y), [Work::stream(2 * x.bytes(), x.bytes())]);
}
