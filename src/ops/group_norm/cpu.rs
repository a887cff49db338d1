use rayon::prelude::*;

use super::Norm;
use crate::device::Tensor;
use crate::ops::math::{exp, wide};

/// Sums kept side by side, so that they vectorise.
const LANES: usize = 32;
/// Numbers per lane that are added in single precision.
const STEPS: usize = 32;

pub(super) fn forward(x: &Tensor, norm: Norm, silu: bool) -> Tensor {
    let (channels, groups) = (x.dim(1), norm.groups);
    let (weight, bias) = (norm.weight.to_f32(), norm.bias.to_f32());
    let fits = weight.len() == channels && bias.len() == channels && groups > 0 && channels.is_multiple_of(groups);
    assert!(fits, "group norm: x {x:?}, {groups} groups, weight {:?}", norm.weight.shape());
    let plane: usize = x.shape()[2..].iter().product();
    let size = channels / groups * plane;
    let mut y = Tensor::scratch(x.shape());
    if y.is_empty() {
        return y;
    }
    y.data_mut().par_chunks_exact_mut(size).zip(x.data().par_chunks_exact(size)).enumerate().for_each(|(i, (y, x))| {
        let mean = sum(x) / size as f64;
        let shift = mean as f32;
        let variance = sum_of_squares(x, shift) / size as f64 - (mean - f64::from(shift)).powi(2);
        let inverse = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let first = i % groups * (channels / groups);
        for (c, (y, x)) in y.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
            let scale = f64::from(weight[first + c]) * inverse;
            // What the mean lost when it was rounded.
            let bias = (f64::from(bias[first + c]) + (f64::from(shift) - mean) * scale) as f32;
            if silu { scaled_silu(y, x, shift, scale as f32, bias) } else { scaled(y, x, shift, scale as f32, bias) }
        }
    });
    y
}

wide! {
    fn scaled(y: &mut [f32], x: &[f32], shift: f32, scale: f32, bias: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - shift).mul_add(scale, bias));
    }
}

wide! {
    fn scaled_silu(y: &mut [f32], x: &[f32], shift: f32, scale: f32, bias: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| {
            let v = (x - shift).mul_add(scale, bias);
            *y = v / (1.0 + exp(-v));
        });
    }
}

wide! {
    fn sum(x: &[f32]) -> f64 {
        total(x, |v| v)
    }
}

wide! {
    fn sum_of_squares(x: &[f32], shift: f32) -> f64 {
        total(x, |v| (v - shift) * (v - shift))
    }
}

/// `Σ f(xᵢ)`: short sums in single precision, their sum in double; always in the same order.
#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut totals = [0.0f64; LANES];
    for block in x.chunks(LANES * STEPS) {
        let mut lanes = [0.0f32; LANES];
        let (lines, rest) = block.as_chunks::<LANES>();
        for line in lines {
            lanes.iter_mut().zip(line).for_each(|(l, v)| *l += f(*v));
        }
        lanes.iter_mut().zip(rest).for_each(|(l, v)| *l += f(*v));
        totals.iter_mut().zip(lanes).for_each(|(t, l)| *t += f64::from(l));
    }
    totals.iter().sum()
}
