use rayon::prelude::*;

use super::Activation;
use crate::device::Tensor;
use crate::ops::cpu::at_least;
use crate::ops::math::{self, wide};

/// Elements per task.
const GRAIN: usize = 1 << 14;

const ROOT_2_OVER_PI: f32 = 0.797_884_6;

const CUBIC: f32 = 0.044_715;

pub(super) fn forward(x: &mut Tensor, activation: Activation) {
    let chunks = x.host_mut().par_chunks_mut(GRAIN);
    chunks.with_min_len(at_least(1)).for_each(|chunk| apply(chunk, activation));
}

/// The activation of every element of `x`.
pub(in crate::ops) fn apply(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::GeluTanh => gelu_tanh(x),
        Activation::GeluErf => gelu_erf(x),
        Activation::QuickGelu => quick_gelu(x),
        Activation::Silu => silu(x),
    }
}

wide! {
    fn gelu_tanh(x: &mut [f32]) {
        // (1 + tanh u)/2 = sigmoid(2u)
        x.iter_mut().for_each(|v| *v *= math::sigmoid(2.0 * ROOT_2_OVER_PI * (*v + CUBIC * *v * *v * *v)));
    }
}

wide! {
    fn gelu_erf(x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v = 0.5 * *v * (1.0 + math::erf(*v * std::f32::consts::FRAC_1_SQRT_2)));
    }
}

wide! {
    fn quick_gelu(x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v *= math::sigmoid(1.702 * *v));
    }
}

wide! {
    fn silu(x: &mut [f32]) {
        x.iter_mut().for_each(|v| *v *= math::sigmoid(*v));
    }
}

pub(super) fn gelu_tanh_backward(d: &mut Tensor, x: &Tensor) {
    let chunks = d.host_mut().par_chunks_mut(GRAIN).zip(x.host().par_chunks(GRAIN));
    chunks.with_min_len(at_least(1)).for_each(|(d, x)| gelu_tanh_gradient(d, x));
}

wide! {
    /// As many elements of `d` as there are times the slopes at those of `x`.
    pub(in crate::ops) fn gelu_tanh_gradient(d: &mut [f32], x: &[f32]) {
        for (d, &v) in d.iter_mut().zip(x) {
            let s = math::sigmoid(2.0 * ROOT_2_OVER_PI * (v + CUBIC * v * v * v));
            *d *= s + v * s * (1.0 - s) * 2.0 * ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
        }
    }
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, activation: Activation) {
    let gradient = match activation {
        Activation::GeluTanh => gelu_tanh_gradient,
        Activation::GeluErf => gelu_erf_gradient,
        Activation::QuickGelu => quick_gelu_gradient,
        Activation::Silu => silu_gradient,
    };
    let chunks = d.host_mut().par_chunks_mut(GRAIN).zip(x.host().par_chunks(GRAIN));
    chunks.with_min_len(at_least(1)).for_each(|(d, x)| gradient(d, x));
}

wide! {
    fn gelu_erf_gradient(d: &mut [f32], x: &[f32]) {
        // Φ(v) + v φ(v)
        const INVERSE_ROOT_TAU: f32 = 0.398_942_3;
        for (d, &v) in d.iter_mut().zip(x) {
            let cumulated = 0.5 * (1.0 + math::erf(v * std::f32::consts::FRAC_1_SQRT_2));
            *d *= cumulated + v * INVERSE_ROOT_TAU * math::exp(-0.5 * v * v);
        }
    }
}

wide! {
    fn quick_gelu_gradient(d: &mut [f32], x: &[f32]) {
        for (d, &v) in d.iter_mut().zip(x) {
            let s = math::sigmoid(1.702 * v);
            *d *= s + 1.702 * v * s * (1.0 - s);
        }
    }
}

wide! {
    fn silu_gradient(d: &mut [f32], x: &[f32]) {
        for (d, &v) in d.iter_mut().zip(x) {
            let s = math::sigmoid(v);
            *d *= s + v * s * (1.0 - s);
        }
    }
}

pub(super) fn multiply(x: &mut Tensor, y: &Tensor) {
    let chunks = x.host_mut().par_chunks_mut(GRAIN).zip(y.host().par_chunks(GRAIN));
    chunks.with_min_len(at_least(1)).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

pub(super) fn add(x: &mut Tensor, y: &Tensor) {
    let chunks = x.host_mut().par_chunks_mut(GRAIN).zip(y.host().par_chunks(GRAIN));
    chunks.with_min_len(at_least(1)).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}
