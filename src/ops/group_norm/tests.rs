use super::*;
use crate::device::{DType, Device};
use crate::ops::affine::{self, Affine};
use crate::ops::copy;
use crate::ops::linear::rounded;
use crate::ops::testing::{
    bits, check_batch_invariance, check_gradient, check_precision, devices, max_error, on_another_gpu, on_vm, random,
    wide,
};

/// The normalisation in f64, straight from its definition.
fn reference(x: &Tensor, norm: Norm, silu: bool) -> Vec<f64> {
    reference_of(&wide(x), x.dim(0), norm, silu)
}

/// The same of `b` images of f64.
fn reference_of(x: &[f64], b: usize, norm: Norm, silu: bool) -> Vec<f64> {
    let channels = norm.weight.len();
    let (pixels, per_group) = (x.len() / channels / b, channels / norm.groups);
    let (weight, bias) = (wide(norm.weight), wide(norm.bias));
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

#[test]
fn the_gradient_matches_finite_differences_and_is_added() {
    // One block of pixels, and more than one.
    for ([b, h, w, channels], groups) in [([2, 3, 5, 6], 3), ([1, 20, 15, 4], 2)] {
        let (x, dy) = (random(&[b, h, w, channels], 1), random(&[b, h, w, channels], 2));
        let (weight, bias) = (random(&[channels], 3), random(&[channels], 4));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        for silu in [false, true] {
            let mut dx = Tensor::zeros(&Device::Cpu, x.shape());
            backward(&mut dx, &dy, &x, norm, silu);
            check_gradient(&dx, &wide(&x), &dy, |x| reference_of(x, b, norm, silu));
            let once = dx.to_host();
            backward(&mut dx, &dy, &x, norm, silu);
            assert!(dx.to_host().iter().zip(once).all(|(two, one)| *two == one + one));
        }
    }
}

#[test]
fn a_gradient_far_from_zero_loses_nothing_and_is_the_same_bits_alone_and_in_a_batch() {
    let (weight, bias) = (random(&[8], 3), random(&[8], 4));
    let norm = Norm { weight: &weight, bias: &bias, groups: 2, eps: 1e-6 };
    let (x, dy) = (random(&[9, 12, 11, 8], 1), random(&[9, 12, 11, 8], 2));
    let of = |x: &Tensor, dy: &Tensor| {
        let mut dx = Tensor::zeros(&Device::Cpu, x.shape());
        backward(&mut dx, dy, x, norm, true);
        dx
    };
    check_batch_invariance("group norm backward", |images| of(&x.slice(images.clone()), &dy.slice(images)));
    // Multiples of 1/1024 stay what they are 300 further.
    let coarse = |v: f32| (v * 1024.0).round() / 1024.0;
    let near = Tensor::from_slice(&Device::Cpu, &x.host().iter().map(|v| coarse(*v)).collect::<Vec<_>>(), x.shape());
    let far = affine::forward(&near, Affine { after: 300.0, ..Affine::default() });
    assert!(max_error(&of(&far, &dy), &wide(&of(&near, &dy))) < 1e-6);
}

#[test]
fn kernels_of_the_gradient_err_as_little_as_the_cpu_and_give_an_image_the_same_bits_in_any_batch() {
    for (b, channels, groups, h, w) in [(9, 6, 3, 5, 7), (2, 8, 4, 1, 1), (2, 64, 32, 9, 8), (2, 264, 8, 5, 27)] {
        let (weight, bias) = (random(&[channels], 2), random(&[channels], 3));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        for (dtype, silu) in [(DType::F32, true), (DType::F32, false), (DType::F16, true), (DType::Bf16, false)] {
            let [x, dy, sum] = [1, 4, 5].map(|seed| rounded(&random(&[b, h, w, channels], seed), dtype));
            let run = |device: &Device, images: std::ops::Range<usize>| {
                let [x, dy, mut sum] = [&x, &dy, &sum].map(|t| copy::owned(&t.slice(images.clone()).to(device)));
                let (weight, bias) = (weight.to(device), bias.to(device));
                backward(&mut sum, &dy, &x, Norm { weight: &weight, bias: &bias, ..norm }, silu);
                sum
            };
            let got = on_vm(|device| vec![run(device, 0..b), run(device, b / 2..b / 2 + 1)]);
            assert_eq!(bits(&got[0].slice(b / 2..b / 2 + 1)), bits(&got[1]), "{channels} {dtype:?}");
            let [x, dy, sum] = [&x, &dy, &sum].map(|t| rounded(t, DType::F32));
            let mut cpu = copy::owned(&sum);
            backward(&mut cpu, &dy, &x, norm, silu);
            let want = gradient(&wide(&x), &wide(&dy), b, norm, silu);
            let want: Vec<f64> = want.into_iter().zip(wide(&sum)).map(|(d, sum)| d + sum).collect();
            check_precision(&format!("{channels} {dtype:?}"), &got[0], &cpu, &want);
        }
    }
}

/// The gradient in f64: `rstd·(g − mean g − x̂·mean(g·x̂))` with `g` that to the normalised `x̂`.
fn gradient(x: &[f64], dy: &[f64], b: usize, norm: Norm, silu: bool) -> Vec<f64> {
    let channels = norm.weight.len();
    let (pixels, per_group) = (x.len() / channels / b, channels / norm.groups);
    let (weight, bias, size) = (wide(norm.weight), wide(norm.bias), pixels * per_group);
    let mut dx = vec![0.0; x.len()];
    for group in 0..b * norm.groups {
        let (image, first) = (group / norm.groups, group % norm.groups * per_group);
        let at = |i: usize| (image * pixels + i / per_group) * channels + first + i % per_group;
        let mean = |f: &dyn Fn(usize) -> f64| (0..size).map(f).sum::<f64>() / size as f64;
        let middle = mean(&|i| x[at(i)]);
        let rstd = 1.0 / (mean(&|i| (x[at(i)] - middle).powi(2)) + f64::from(norm.eps)).sqrt();
        let hat = |i: usize| (x[at(i)] - middle) * rstd;
        let g = |i: usize| {
            let c = at(i) % channels;
            let v = hat(i) * weight[c] + bias[c];
            let s = 1.0 / (1.0 + (-v).exp());
            dy[at(i)] * weight[c] * if silu { s + v * s * (1.0 - s) } else { 1.0 }
        };
        let (along, offset) = (mean(&|i| g(i) * hat(i)), mean(&g));
        (0..size).for_each(|i| dx[at(i)] = rstd * (g(i) - offset - hat(i) * along));
    }
    dx
}
