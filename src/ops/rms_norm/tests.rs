use super::{backward_row, forward};
use crate::device::Tensor;
use crate::ops::testing::{check_gradient, max_error, random, random_weight, wide};

fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
    x.chunks(w.len())
        .flat_map(|row| {
            let r = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + 1e-6).sqrt();
            row.iter().zip(w).map(move |(v, w)| v * r * w).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rms_norm_and_its_gradient_match_f64_at_odd_widths() {
    for d in [1, 9, 32, 100] {
        let (x, w, dy) = (random(&[4, d], 1), random_weight(&[d], 2), random(&[4, d], 3));
        let w64: Vec<f64> = w.to_f32().iter().map(|v| f64::from(*v)).collect();
        assert!(max_error(&forward(&x, &w, 1e-6), &reference(&wide(&x), &w64)) < 1e-5);
        let mut dx = Tensor::scratch(&[4, d]);
        for ((dx, dy), x) in dx.data_mut().chunks_mut(d).zip(dy.data().chunks(d)).zip(x.data().chunks(d)) {
            backward_row(dx, dy, x, &w.to_f32(), 1e-6);
        }
        if d > 1 {
            check_gradient(&dx, &wide(&x), &dy, |v| reference(v, &w64));
        }
    }
}
