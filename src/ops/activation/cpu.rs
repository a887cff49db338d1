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

pub(super) fn gelu_tanh(x: &mut Tensor) {
    // (1 + tanh u)/2 = sigmoid(2u)
    apply(x, |v| v * math::sigmoid(2.0 * ROOT_2_OVER_PI * (v + CUBIC * v * v * v)));
}

pub(super) fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    d.data_mut().par_chunks_mut(GRAIN).zip(x.data().par_chunks(GRAIN)).for_each(|(d, x)| {
        for (d, &v) in d.iter_mut().zip(x) {
            let s = math::sigmoid(2.0 * ROOT_2_OVER_PI * (v + CUBIC * v * v * v));
            *d *= s + v * s * (1.0 - s) * 2.0 * ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
        }
    });
}

pub(super) fn gelu_erf(x: &mut Tensor) {
    apply(x, |v| 0.5 * v * (1.0 + math::erf(v * std::f32::consts::FRAC_1_SQRT_2)));
}

pub(super) fn quick_gelu(x: &mut Tensor) {
    apply(x, |v| v * math::sigmoid(1.702 * v));
}

pub(super) fn silu(x: &mut Tensor) {
    apply(x, |v| v * math::sigmoid(v));
}

pub(super) fn multiply(x: &mut Tensor, y: &Tensor) {
    x.data_mut()
        .par_chunks_mut(GRAIN)
        .zip(y.data().par_chunks(GRAIN))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

pub(super) fn add(x: &mut Tensor, y: &Tensor) {
    x.data_mut()
        .par_chunks_mut(GRAIN)
        .zip(y.data().par_chunks(GRAIN))
        .for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}
