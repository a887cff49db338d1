use super::*;
use crate::ops::testing::{check_gradient, random, wide};

/// The forward is [`linear`](crate::ops::linear)'s.
#[test]
fn the_gradient_is_that_of_a_gated_residual() {
    let (b, n, d) = (2, 3, 5);
    let (x, y, m, dx) = (random(&[b, n, d], 1), random(&[b, n, d], 2), random(&[b, 2 * d], 3), random(&[b, n, d], 4));
    let (x64, m64) = (wide(&x), wide(&m));
    let reference = |y: &[f64]| -> Vec<f64> {
        (0..y.len()).map(|i| x64[i] + y[i] * m64[(i / (n * d) * 2 + 1) * d + i % d]).collect()
    };
    check_gradient(&backward(&dx, Chunk { modulation: &m, index: 1 }), &wide(&y), &dx, reference);
}
