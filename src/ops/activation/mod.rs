//! Pointwise non-linearities.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// `x/2·(1 + tanh(√(2/π)(x + 0.044715 x³)))` in place: GELU's tanh form.
pub fn gelu_tanh(x: &mut Tensor) {
    cpu::gelu_tanh(x);
}

/// The gradient of [`gelu_tanh`], in place: `d` holds `dy` and becomes `dx`; `x` is the input of the forward.
pub fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    assert_eq!(d.shape(), x.shape(), "gelu backward");
    cpu::gelu_tanh_backward(d, x);
}

/// `x/2·(1 + erf(x/√2))` in place: GELU as defined.
pub fn gelu_erf(x: &mut Tensor) {
    cpu::gelu_erf(x);
}

/// `x·sigmoid(1.702 x)` in place: the approximation OpenAI's CLIP was trained with.
pub fn quick_gelu(x: &mut Tensor) {
    cpu::quick_gelu(x);
}

/// `x·sigmoid(x)` in place.
pub fn silu(x: &mut Tensor) {
    cpu::silu(x);
}

/// `x·y` elementwise, into `x`.
pub fn multiply(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "multiply");
    cpu::multiply(x, y);
}

/// `x + y` elementwise, into `x`.
pub fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "add");
    cpu::add(x, y);
}
