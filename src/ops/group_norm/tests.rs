use super::*;
use crate::ops::affine::{self, Affine};
use crate::ops::testing::{max_error, random, wide};

/// The normalisation in f64, straight from its definition.
fn reference(x: &Tensor, norm: Norm, silu: bool) -> Vec<f64> {
    let (b, channels) = (x.dim(0), x.width());
    let (pixels, per_group) = (x.rows() / b, channels / norm.groups);
    let (x, weight, bias) = (wide(x), wide(norm.weight), wide(norm.bias));
    let mut y = vec![0.0; x.len()];
    for group in 0..b * norm.groups {
        let (image, first) = (group / norm.groups, group % norm.groups * per_group);
        let at = |i: usize| (image * pixels + i / per_group) * channels + first + i % per_group;
        let size = pixels * per_group;
        let mean = (0..size).map(|i| x[at(i)]).sum::<f64>() / size as f64;
        let variance = (0..size).map(|i| (x[at(i)] - mean).powi(2)).sum::<f64>() / size as f64;
        for i in 0..size {
            let c = at(i) % channels;
            let v = (x[at(i)] - mean) / (variance + f64::from(norm.eps)).sqrt() * weight[c] + bias[c];
            y[at(i)] = if silu { v / (1.0 + (-v).exp()) } else { v };
        }
    }
    y
}

#[test]
fn forward_matches_the_definition_in_f64_also_far_from_zero() {
    for (b, channels, groups, h, w, offset) in
        [(1, 4, 4, 1, 2, 0.0), (2, 6, 3, 5, 7, 0.0), (2, 8, 2, 40, 33, 0.0), (1, 4, 1, 64, 64, 300.0)]
    {
        let shifted = Affine { after: offset, ..Affine::default() };
        let x = affine::forward(&random(&[b, h, w, channels], 1), shifted);
        let (weight, bias) = (random(&[channels], 2), random(&[channels], 3));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        for silu in [false, true] {
            let error = max_error(&forward(&x, norm, silu), &reference(&x, norm, silu));
            assert!(error < 1e-6, "{:?} offset {offset}: {error:e}", x.shape());
        }
    }
}
