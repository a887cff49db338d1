use super::*;
use crate::device::{DType, Device};
use crate::ops::affine::{self, Affine};
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_precision, devices, max_error, on_another_gpu, on_vm, random, wide};

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
            let want = reference(&x, norm, silu);
            for device in devices() {
                let (x, weight, bias) = (x.to(&device), weight.to(&device), bias.to(&device));
                let error = max_error(&forward(&x, Norm { weight: &weight, bias: &bias, ..norm }, silu), &want);
                assert!(error < 1e-6, "{:?} offset {offset} on {device:?}: {error:e}", x.shape());
            }
        }
    }
}

#[test]
fn kernels_err_as_little_as_the_cpu_and_give_an_image_the_same_bits_in_any_batch() {
    // Channels below, at and off what 16 bytes hold and what a block takes; several chunks, and one that is not full.
    for (b, channels, groups, h, w) in [(9, 6, 3, 5, 7), (2, 8, 4, 1, 1), (2, 64, 32, 9, 8), (2, 264, 8, 5, 27)] {
        let (weight, bias) = (random(&[channels], 2), random(&[channels], 3));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let x = rounded(&random(&[b, h, w, channels], 1), dtype);
            let run = |device: &Device, images: std::ops::Range<usize>| {
                let (x, weight, bias) = (x.slice(images).to(device), weight.to(device), bias.to(device));
                forward(&x, Norm { weight: &weight, bias: &bias, ..norm }, true)
            };
            let got = on_vm(|device| vec![run(device, 0..b), run(device, b / 2..b / 2 + 1)]);
            assert_eq!(bits(&got[0].slice(b / 2..b / 2 + 1)), bits(&got[1]), "{channels} {dtype:?}");
            let x = rounded(&x, DType::F32);
            let (cpu, want) = (forward(&x, norm, true), reference(&x, norm, true));
            let another = on_another_gpu(|device| vec![run(device, 0..b)]);
            for got in [&got[0], &another[0]] {
                check_precision(&format!("{channels} {dtype:?}"), got, &cpu, &want);
            }
        }
    }
}
