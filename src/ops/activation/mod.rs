//! Pointwise non-linearities.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::math;

/// Elements per task.
const GRAIN: usize = 1 << 14;

fn apply(x: &mut Tensor, f: impl Fn(f32) -> f32 + Sync) {
    x.data_mut().par_chunks_mut(GRAIN).for_each(|chunk| chunk.iter_mut().for_each(|v| *v = f(*v)));
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `x/2·(1 + tanh(√(2/π)(x + 0.044715 x³)))` in place: GELU's tanh form.
pub fn gelu_tanh(x: &mut Tensor) {
    // (1 + tanh u)/2 = sigmoid(2u)
    apply(x, |v| v * math::sigmoid(2.0 * ROOT_2_OVER_PI * (v + CUBIC * v * v * v)));
}

/// The gradient of [`gelu_tanh`], in place: `d` holds `dy` and becomes `dx`; `x` is the input of the forward.
pub fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    assert_eq!(d.shape(), x.shape(), "gelu backward");
    d.data_mut().par_chunks_mut(GRAIN).zip(x.data().par_chunks(GRAIN)).for_each(|(d, x)| {
        for (d, &v) in d.iter_mut().zip(x) {
            let s = math::sigmoid(2.0 * ROOT_2_OVER_PI * (v + CUBIC * v * v * v));
            *d *= s + v * s * (1.0 - s) * 2.0 * ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
        }
    });
}

/// `x/2·(1 + erf(x/√2))` in place: GELU as defined.
pub fn gelu_erf(x: &mut Tensor) {
    apply(x, |v| 0.5 * v * (1.0 + math::erf(v * std::f32::consts::FRAC_1_SQRT_2)));
}

/// `x·sigmoid(1.702 x)` in place: the approximation OpenAI's CLIP was trained with.
pub fn quick_gelu(x: &mut Tensor) {
    apply(x, |v| v * math::sigmoid(1.702 * v));
}

/// `x·sigmoid(x)` in place.
pub fn silu(x: &mut Tensor) {
    apply(x, |v| v * math::sigmoid(v));
}

/// `x·y` elementwise, into `x`.
pub fn multiply(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "multiply");
    x.data_mut()
        .par_chunks_mut(GRAIN)
        .zip(y.data().par_chunks(GRAIN))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

/// `x + y` elementwise, into `x`.
pub fn add(x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "add");
    x.data_mut()
        .par_chunks_mut(GRAIN)
        .zip(y.data().par_chunks(GRAIN))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}
