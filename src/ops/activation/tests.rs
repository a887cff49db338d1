use super::*;
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
    type Case<'a> = (fn(&mut Tensor), Box<dyn Fn(f64) -> f64 + 'a>);
    let cases: [Case; 4] = [
        (gelu_tanh, Box::new(gelu_tanh_f64)),
        (gelu_erf, Box::new(|v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt())))),
        (quick_gelu, Box::new(|v| v * sigmoid(1.702 * v))),
        (silu, Box::new(|v| v * sigmoid(v))),
    ];
    for (f, reference) in cases {
        let mut y = x.clone();
        f(&mut y);
        let want: Vec<f64> = wide(&x).into_iter().map(&reference).collect();
        assert!(max_error(&y, &want) < 1e-6);
    }
}

#[test]
fn sums_and_products_are_elementwise() {
    let (x, y) = (random(&[37, 11], 1), random(&[37, 11], 2));
    let (mut sum, mut product) = (x.clone(), x.clone());
    add(&mut sum, &y);
    multiply(&mut product, &y);
    for (i, (x, y)) in x.data().iter().zip(y.data()).enumerate() {
        assert_eq!((sum.data()[i], product.data()[i]), (x + y, x * y));
    }
}

#[test]
fn gradient_of_gelu_matches_finite_differences() {
    let (x, dy) = (random(&[50], 1), random(&[50], 2));
    let mut dx = dy.clone();
    gelu_tanh_backward(&mut dx, &x);
    check_gradient(&dx, &wide(&x), &dy, |v| v.iter().map(|v| gelu_tanh_f64(*v)).collect());
}
