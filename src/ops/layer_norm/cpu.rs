use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{dot, rows_per_task, scratch, sum};
use crate::ops::math::wide;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) {
    let d = x.width();
    let (weight, bias) = (weight.elems().to_f32(), bias.elems().to_f32());
    let rows = y.host_mut().par_chunks_exact_mut(d).zip(x.host().par_chunks_exact(d));
    rows.with_min_len(rows_per_task(d)).for_each(|(y, x)| row(y, x, &weight, &bias, eps));
}

wide! {
    fn row(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let Statistics { mean, rstd } = statistics(x, eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * rstd * w + b;
        }
    }
}

/// Mean and reciprocal standard deviation of a row.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Statistics {
    pub mean: f32,
    pub rstd: f32,
}

#[inline(always)]
pub(in crate::ops) fn statistics(x: &[f32], eps: f32) -> Statistics {
    let n = x.len() as f32;
    let mean = sum(x, |v| v) / n;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
    Statistics { mean, rstd: 1.0 / (variance + eps).sqrt() }
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) {
    let d = x.width();
    let weight = weight.elems().to_f32();
    let rows = dx.host_mut().par_chunks_exact_mut(d).zip(dy.host().par_chunks_exact(d));
    let rows = rows.zip(x.host().par_chunks_exact(d)).with_min_len(rows_per_task(d));
    rows.for_each(|((dx, dy), x)| {
        scratch(2 * d, |kept| {
            let (g, hat) = kept.split_at_mut(d);
            g.iter_mut().zip(dy).zip(&*weight).for_each(|((g, dy), w)| *g = dy * w);
            row_backward(dx, g, hat, x, eps);
        });
    });
}

wide! {
    /// Adds to `dx` the gradient to `x`, if `g` is that to the normalised `x`, for which `hat` is room.
    fn row_backward(dx: &mut [f32], g: &[f32], hat: &mut [f32], x: &[f32], eps: f32) {
        let s = statistics(x, eps);
        hat.iter_mut().zip(x).for_each(|(hat, x)| *hat = (x - s.mean) * s.rstd);
        let mean = sum(g, |v| v) / g.len() as f32;
        let along = dot(g, hat) / g.len() as f32;
        for ((dx, g), hat) in dx.iter_mut().zip(g).zip(hat.iter()) {
            *dx += s.rstd * (g - mean - hat * along);
        }
    }
}
