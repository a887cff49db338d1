use super::forward;
use crate::ops::testing::{max_error, random, random_weight};

#[test]
fn layer_norm_matches_f64_with_and_without_affine_at_odd_widths() {
    for d in [1, 7, 64, 100] {
        let (x, w, b) = (random(&[5, d], 1), random_weight(&[d], 2), random_weight(&[d], 3));
        let reference = |affine: bool| -> Vec<f64> {
            let mut out = Vec::new();
            for row in x.data().chunks(d) {
                let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / d as f64;
                let var = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / d as f64;
                for (i, v) in row.iter().enumerate() {
                    let y = (f64::from(*v) - mean) / (var + 1e-5).sqrt();
                    let (w, b) = (f64::from(w.elems().get(i)), f64::from(b.elems().get(i)));
                    out.push(if affine { y * w + b } else { y });
                }
            }
            out
        };
        assert!(max_error(&forward(&x, Some(&w), Some(&b), 1e-5), &reference(true)) < 1e-5);
        assert!(max_error(&forward(&x, None, None, 1e-5), &reference(false)) < 1e-5);
    }
}
