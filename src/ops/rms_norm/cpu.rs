use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{dot, rows_per_task, sum};
use crate::ops::math::wide;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let d = weight.width();
    let weight = weight.elems().to_f32();
    let rows = y.host_mut().par_chunks_exact_mut(d).zip(x.host().par_chunks_exact(d));
    rows.with_min_len(rows_per_task(d)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        row(y, &weight, eps);
    });
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32) {
    let d = weight.width();
    let weight = weight.elems().to_f32();
    x.host_mut().par_chunks_exact_mut(d).with_min_len(rows_per_task(d)).for_each(|x| row(x, &weight, eps));
}

wide! {
    fn row(x: &mut [f32], weight: &[f32], eps: f32) {
        let r = reciprocal(x, eps);
        x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * r * w);
    }
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let width = weight.width();
    let weight = weight.elems().to_f32();
    let rows = d.host_mut().par_chunks_exact_mut(width).zip(x.host().par_chunks_exact(width));
    rows.with_min_len(rows_per_task(width)).for_each(|(d, x)| row_backward(d, x, &weight, eps));
}

wide! {
    fn row_backward(d: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
        let r = reciprocal(x, eps);
        d.iter_mut().zip(weight).for_each(|(d, w)| *d *= w);
        let along = dot(d, x) / x.len() as f32 * r * r;
        d.iter_mut().zip(x).for_each(|(d, x)| *d = r * (*d - x * along));
    }
}

#[inline(always)]
fn reciprocal(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}
