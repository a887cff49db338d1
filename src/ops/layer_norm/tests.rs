use super::forward;
use crate::ops::testing::{max_error, random, wide};

#[test]
fn layer_norm_matches_f64_at_odd_widths() {
    for d in [1, 7, 64, 100] {
        let (x, w, b) = (random(&[5, d], 1), random(&[d], 2), random(&[d], 3));
        let (w64, b64) = (wide(&w), wide(&b));
        let mut want = Vec::new();
        for row in wide(&x).chunks(d) {
            let mean = row.iter().sum::<f64>() / d as f64;
            let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            want.extend((0..d).map(|i| (row[i] - mean) / (var + 1e-5).sqrt() * w64[i] + b64[i]));
        }
        assert!(max_error(&forward(&x, &w, &b, 1e-5), &want) < 1e-5);
    }
}
