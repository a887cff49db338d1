use rayon::prelude::*;

use super::Norm;
use crate::device::Tensor;
use crate::ops::{math, sum};

/// Elements whose sum is taken in single precision.
const BLOCK: usize = 512;

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
        let mean = total(x, |v| v) / size as f64;
        let shift = mean as f32;
        let variance = total(x, |v| (v - shift) * (v - shift)) / size as f64 - (mean - f64::from(shift)).powi(2);
        let inverse = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let first = i % groups * (channels / groups);
        for (c, (y, x)) in y.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
            let scale = f64::from(weight[first + c]) * inverse;
            // What the mean lost when it was rounded.
            let bias = (f64::from(bias[first + c]) + (f64::from(shift) - mean) * scale) as f32;
            let scale = scale as f32;
            let lanes = y.iter_mut().zip(x);
            if silu {
                lanes.for_each(|(y, x)| {
                    let v = (x - shift).mul_add(scale, bias);
                    *y = v * math::sigmoid(v);
                });
            } else {
                lanes.for_each(|(y, x)| *y = (x - shift).mul_add(scale, bias));
            }
        }
    });
    y
}

/// `Σ f(xᵢ)`: short sums in single precision, their sum in double.
fn total(x: &[f32], f: impl Fn(f32) -> f32 + Copy) -> f64 {
    x.chunks(BLOCK).map(|block| f64::from(sum(block, f))).sum()
}
