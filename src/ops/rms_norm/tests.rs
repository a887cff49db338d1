use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, check_gradient, max_error, random, wide};

fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let r = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + 1e-6).sqrt();
            row.iter().zip(w).map(move |(v, w)| v * r * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rms_norm_and_its_gradient_match_f64_at_odd_widths_and_per_head() {
    for (d, heads) in [(1, 1), (9, 1), (32, 3), (100, 2)] {
        let (x, w, dy) = (random(&[4, heads * d], 1), random(&[d], 2), random(&[4, heads * d], 3));
        let w64 = wide(&w);
        let y = forward(&x, &w, 1e-6);
        assert!(max_error(&y, &reference(&wide(&x), &w64)) < 1e-5);
        let mut again = owned(&x);
        forward_in_place(&mut again, &w, 1e-6);
        assert_eq!(bits(&again), bits(&y));
        let mut dx = owned(&dy);
        backward(&mut dx, &x, &w, 1e-6);
        // At width 1 the derivative is that of the sign: nothing but eps.
        if d > 1 {
            check_gradient(&dx, &wide(&x), &dy, |v| reference(v, &w64));
        }
    }
}
