use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{rows_per_task, sum};
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
