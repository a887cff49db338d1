use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{dot, rows_per_task, sum};
use crate::ops::math::wide;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let d = weight.width();
    let rows = y.host_mut().par_chunks_exact_mut(d).zip(x.host().par_chunks_exact(d));
    rows.with_min_len(rows_per_task(d)).for_each(|(y, x)| y.copy_from_slice(x));
    forward_in_place(y, weight, eps, inverse);
}

pub(super) fn forward_in_place(x: &mut Tensor, weight: &Tensor, eps: f32, inverse: Option<&mut Tensor>) {
    let d = weight.width();
    let weight = weight.elems().to_f32();
    let inverse = inverse.map_or(&mut [][..], Tensor::host_mut);
    let (kept, others) = x.host_mut().split_at_mut(inverse.len() * d);
    let kept = kept.par_chunks_exact_mut(d).zip(inverse).with_min_len(rows_per_task(d));
    kept.for_each(|(x, r)| *r = row(x, &weight, eps));
    let others = others.par_chunks_exact_mut(d).with_min_len(rows_per_task(d));
    others.for_each(|x| {
        row(x, &weight, eps);
    });
}

pub(super) fn forward_again(y: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let d = weight.width();
    let weight = weight.elems().to_f32();
    let rows = y.host_mut().par_chunks_exact_mut(d).zip(x.host().par_chunks_exact(d)).zip(inverse.host());
    rows.with_min_len(rows_per_task(d)).for_each(|((y, x), r)| scaled(y, x, &weight, *r));
}

wide! {
    fn row(x: &mut [f32], weight: &[f32], eps: f32) -> f32 {
        let r = 1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt();
        x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * r * w);
        r
    }
}

wide! {
    fn scaled(y: &mut [f32], x: &[f32], weight: &[f32], r: f32) {
        y.iter_mut().zip(x).zip(weight).for_each(|((y, x), w)| *y = *x * r * w);
    }
}

pub(super) fn backward(d: &mut Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor) {
    let width = weight.width();
    let weight = weight.elems().to_f32();
    let rows = d.host_mut().par_chunks_exact_mut(width).zip(x.host().par_chunks_exact(width)).zip(inverse.host());
    rows.with_min_len(rows_per_task(width)).for_each(|((d, x), r)| row_backward(d, x, &weight, *r));
}

wide! {
    fn row_backward(d: &mut [f32], x: &[f32], weight: &[f32], r: f32) {
        d.iter_mut().zip(weight).for_each(|(d, w)| *d *= w);
        let along = dot(d, x) / x.len() as f32 * r * r;
        d.iter_mut().zip(x).for_each(|(d, x)| *d = r * (*d - x * along));
    }
}
