//! What the tests of all ops share: random inputs and comparison with f64.

use crate::device::philox::{Key, Purpose};
use crate::device::{Tensor, Weight};

/// A tensor of standard normal numbers.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut t = Tensor::scratch(shape);
    Key::new(seed, Purpose::ForwardNoise).normal(t.data_mut());
    t
}

/// A weight of standard normal numbers.
pub fn random_weight(shape: &[usize], seed: u64) -> Weight {
    Weight::owned(random(shape, seed).data().to_vec(), shape.to_vec())
}

/// The elements widened to f64.
pub fn wide(t: &Tensor) -> Vec<f64> {
    t.data().iter().map(|v| f64::from(*v)).collect()
}

/// Largest difference relative to the largest reference value.
pub fn max_error(got: &Tensor, want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    got.data().iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max) / largest
}

/// Compares `grad` with central differences of `sum(dy · f(x))` in f64, at every element of `x`.
pub fn check_gradient(grad: &Tensor, x: &[f64], dy: &Tensor, f: impl Fn(&[f64]) -> Vec<f64>) {
    const STEP: f64 = 1e-5;
    let loss = |v: &[f64]| f(v).iter().zip(dy.data()).map(|(y, d)| y * f64::from(*d)).sum::<f64>();
    let mut v = x.to_vec();
    let numeric: Vec<f64> = (0..x.len())
        .map(|i| {
            v[i] = x[i] + STEP;
            let up = loss(&v);
            v[i] = x[i] - STEP;
            let down = loss(&v);
            v[i] = x[i];
            (up - down) / (2.0 * STEP)
        })
        .collect();
    let error = max_error(grad, &numeric);
    // Central differences err by STEP² · f''' and f64 cancellation, both far below f32 rounding of the gradient.
    assert!(error < 2e-5, "gradient off by {error:e}");
}
