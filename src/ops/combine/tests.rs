use super::*;
use crate::ops::products::{self, Weights};
use crate::ops::testing::{check_gradient, random, wide};

/// Whatever an algorithm makes of the products: its gradient is this combination.
#[test]
fn a_combination_is_the_gradient_of_a_function_of_products() {
    let (rows, per) = (2, 31);
    let [v, r, y] = [1, 2, 3].map(|seed| random(&[rows, per], seed));
    let terms = |w| vec![(Weights::All(1.0), &v), (Weights::All(w), &r)];
    let differences = [Difference { terms: terms(-1.0) }, Difference { terms: vec![(Weights::All(1.0), &y)] }];
    // L = Σ_rows (g00² + 3·g01): dL/dv = 4·g00·d0/D + 3·d1/D.
    let g = products::forward(&differences);
    let coefficients = [g.iter().map(|p| 4.0 * p.gram[0][0]).collect(), vec![3.0; rows]];
    let grad = forward(&differences, &coefficients);
    let (r64, y64) = (wide(&r), wide(&y));
    let loss = |v: &[f64]| -> Vec<f64> {
        let row = |row: usize| {
            let mean = |f: &dyn Fn(usize) -> f64| (row * per..(row + 1) * per).map(f).sum::<f64>() / per as f64;
            mean(&|i| (v[i] - r64[i]).powi(2)).powi(2) + 3.0 * mean(&|i| (v[i] - r64[i]) * y64[i])
        };
        vec![(0..rows).map(row).sum()]
    };
    let one = crate::device::Tensor::from_slice(&v.device(), &[1.0], &[1]);
    check_gradient(&grad, &wide(&v), &one, loss);
}
