use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{check_gradient, max_error, random, wide};

fn gelu_tanh_f64(v: f64) -> f64 {
    0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh())
}

#[test]
fn activations_match_f64() {
    let x = random(&[37, 11], 1);
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
    let cases: [(Activation, &dyn Fn(f64) -> f64); 4] = [
        (Activation::GeluTanh, &gelu_tanh_f64),
        (Activation::GeluErf, &|v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt()))),
        (Activation::QuickGelu, &|v| v * sigmoid(1.702 * v)),
        (Activation::Silu, &|v| v * sigmoid(v)),
    ];
    for (activation, reference) in cases {
        let mut y = owned(&x);
        forward(&mut y, activation);
        let want: Vec<f64> = wide(&x).into_iter().map(reference).collect();
        assert!(max_error(&y, &want) < 1e-6, "{activation:?}");
    }
}

#[test]
fn far_from_zero_activations_are_the_line_they_approach() {
    for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
        let mut y = Tensor::from_slice(&crate::device::Device::Cpu, &[-1e30, -200.0, 0.0, 200.0, 1e30], &[5]);
        forward(&mut y, activation);
        assert_eq!(y.host(), [0.0, 0.0, 0.0, 200.0, 1e30], "{activation:?}");
    }
}

#[test]
fn sums_and_products_are_elementwise() {
    let (x, y) = (random(&[37, 11], 1), random(&[37, 11], 2));
    let (mut sum, mut product) = (owned(&x), owned(&x));
    add(&mut sum, &y);
    multiply(&mut product, &y);
    for (i, (x, y)) in x.host().iter().zip(y.host()).enumerate() {
        assert_eq!((sum.host()[i], product.host()[i]), (x + y, x * y));
    }
}

#[test]
fn gradient_of_gelu_matches_finite_differences() {
    let (x, dy) = (random(&[50], 1), random(&[50], 2));
    let mut dx = owned(&dy);
    gelu_tanh_backward(&mut dx, &x);
    check_gradient(&dx, &wide(&x), &dy, |v| v.iter().map(|v| gelu_tanh_f64(*v)).collect());
}
