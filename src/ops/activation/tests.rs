use super::*;
use crate::device::{DType, Device};
use crate::ops::copy::owned;
use crate::ops::testing::{check_gradient, check_precision, devices, max_error, on_vm, random, wide};

fn gelu_tanh_f64(v: f64) -> f64 {
    0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh())
}

const ALL: [Activation; 4] = [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu];

fn in_f64(activation: Activation, v: f64) -> f64 {
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    // erf by its Maclaurin series: at |x| < 5 the terms fit f64 with room to spare.
    let erf = |x: f64| {
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    };
    match activation {
        Activation::GeluTanh => gelu_tanh_f64(v),
        Activation::GeluErf => 0.5 * v * (1.0 + erf(v / 2f64.sqrt())),
        Activation::QuickGelu => v * sigmoid(1.702 * v),
        Activation::Silu => v * sigmoid(v),
    }
}

#[test]
fn activations_match_f64() {
    let x = random(&[37, 11], 1);
    for activation in ALL {
        let want: Vec<f64> = wide(&x).into_iter().map(|v| in_f64(activation, v)).collect();
        for device in devices() {
            let mut y = x.to(&device);
            y = if matches!(device, Device::Cpu) { owned(&y) } else { y };
            forward(&mut y, activation);
            assert!(max_error(&y, &want) < 1e-6, "{activation:?} on {device:?}");
        }
    }
}

#[test]
fn far_from_zero_activations_are_the_line_they_approach() {
    for (activation, device) in ALL.into_iter().zip(devices().into_iter().cycle()) {
        let mut y = Tensor::from_slice(&device, &[-1e30, -200.0, 0.0, 200.0, 1e30], &[5]);
        forward(&mut y, activation);
        assert_eq!(y.to_host(), [0.0, 0.0, 0.0, 200.0, 1e30], "{activation:?}");
    }
}

#[test]
fn sums_and_products_are_elementwise() {
    for device in devices() {
        let (x, y) = (random(&[37, 11], 1), random(&[37, 11], 2));
        let moved = |t: &Tensor| Tensor::from_slice(&device, t.host(), t.shape());
        let (mut sum, mut product) = (moved(&x), moved(&x));
        add(&mut sum, &moved(&y));
        multiply(&mut product, &moved(&y));
        let (sum, product) = (sum.to_host(), product.to_host());
        for (i, (x, y)) in x.host().iter().zip(y.host()).enumerate() {
            assert_eq!((sum[i], product[i]), (x + y, x * y));
        }
    }
}

#[test]
fn gradient_of_gelu_matches_finite_differences() {
    for device in devices() {
        let (x, dy) = (random(&[50], 1), random(&[50], 2));
        let mut dx = Tensor::from_slice(&device, dy.host(), &[50]);
        gelu_tanh_backward(&mut dx, &x.to(&device));
        check_gradient(&dx, &wide(&x), &dy, |v| v.iter().map(|v| gelu_tanh_f64(*v)).collect());
    }
}

#[test]
fn gradients_of_all_match_finite_differences() {
    let (x, dy) = (random(&[50], 1), random(&[50], 2));
    for (activation, device) in ALL.into_iter().flat_map(|a| devices().map(|device| (a, device))) {
        let mut dx = Tensor::from_slice(&device, dy.host(), &[50]);
        backward(&mut dx, &x.to(&device), activation);
        check_gradient(&dx, &wide(&x), &dy, |v| v.iter().map(|v| in_f64(activation, *v)).collect());
    }
}

#[test]
fn kernels_give_the_cpu_s_bits_in_single_precision_and_round_once_in_half() {
    for n in [1, 7, 1024, 4099] {
        let (x, d) = (random(&[n], 3), random(&[n], 4));
        for activation in ALL {
            let mut want = owned(&x);
            forward(&mut want, activation);
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let x = crate::ops::linear::rounded(&x, dtype);
                let got = on_vm(|device| {
                    let mut y = x.to(device);
                    forward(&mut y, activation);
                    vec![y]
                });
                if dtype == DType::F32 {
                    assert_eq!(got[0].to_raw(), want.to_raw(), "{activation:?} of {n}");
                } else {
                    let exact: Vec<f64> = wide(&x).into_iter().map(|v| in_f64(activation, v)).collect();
                    check_precision(&format!("{activation:?} of {n}"), &got[0], &want_of(&x, activation), &exact);
                }
            }
        }
        for activation in ALL {
            let mut want = owned(&d);
            backward(&mut want, &x, activation);
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let [x, d] = [&x, &d].map(|t| crate::ops::linear::rounded(t, dtype));
                let got = on_vm(|device| {
                    let mut dx = d.to(device);
                    backward(&mut dx, &x.to(device), activation);
                    vec![dx]
                });
                let name = format!("gradient of {activation:?} of {n}, {dtype:?}");
                if dtype == DType::F32 {
                    assert_eq!(got[0].to_raw(), want.to_raw(), "{name}");
                } else {
                    let single = |t: &Tensor| Tensor::from_slice(&Device::Cpu, &t.to_host(), t.shape());
                    let mut cpu = single(&d);
                    backward(&mut cpu, &single(&x), activation);
                    check_precision(&name, &got[0], &cpu, &wide(&cpu));
                }
            }
        }
    }
}

/// The CPU's result for numbers of any type.
fn want_of(x: &Tensor, activation: Activation) -> Tensor {
    let mut y = Tensor::from_slice(&Device::Cpu, &x.to_host(), x.shape());
    forward(&mut y, activation);
    y
}
