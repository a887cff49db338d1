use rayon::prelude::*;

use crate::device::{Tensor, Weight};
use crate::ops::cpu::{dot, rows_per_task, sum};

pub(super) fn forward(x: &Tensor, weight: &Weight, eps: f32) -> Tensor {
    let d = x.width();
    let weight = weight.to_f32();
    let mut y = Tensor::scratch(x.shape());
    let rows = y.data_mut().par_chunks_exact_mut(d).zip(x.data().par_chunks_exact(d));
    rows.with_min_len(rows_per_task(d)).for_each(|(y, x)| forward_row(y, x, &weight, eps));
    y
}

/// One row of [`forward`].
pub(in crate::ops) fn forward_row(y: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let r = reciprocal(x, eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * r * w;
    }
}

/// The gradient to one row: `dx = r·(w·dy − x·r²·mean(w·dy·x))`, `r = 1/√(mean(x²) + eps)`.
pub(in crate::ops) fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], eps: f32) {
    let r = reciprocal(x, eps);
    for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
        *dx = dy * w;
    }
    let along = dot(dx, x) / x.len() as f32 * r * r;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = r * (*dx - x * along);
    }
}

fn reciprocal(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}
