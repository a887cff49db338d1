use super::*;
use crate::ops::testing::{check_gradient, max_error, random, wide};

#[test]
fn gated_residual_and_its_gradient_match_f64() {
    let (b, n, d) = (2, 3, 5);
    let (x, y, m, dx) = (random(&[b, n, d], 1), random(&[b, n, d], 2), random(&[b, 2 * d], 3), random(&[b, n, d], 4));
    let (x64, m64) = (wide(&x), wide(&m));
    let reference = |y: &[f64]| -> Vec<f64> {
        (0..y.len()).map(|i| x64[i] + y[i] * m64[(i / (n * d) * 2 + 1) * d + i % d]).collect()
    };
    let mut out = x.clone();
    forward(&mut out, &y, &m, 1);
    assert!(max_error(&out, &reference(&wide(&y))) < 1e-6);
    check_gradient(&backward(&dx, &m, 1), &wide(&y), &dx, reference);
}
