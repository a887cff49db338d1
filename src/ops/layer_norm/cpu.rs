use rayon::prelude::*;

use crate::device::{Tensor, Weight};
use crate::ops::cpu::{rows_per_task, sum};

pub(super) fn forward(x: &Tensor, weight: Option<&Weight>, bias: Option<&Weight>, eps: f32) -> Tensor {
    let d = x.width();
    let (weight, bias) = (weight.map(Weight::to_f32), bias.map(Weight::to_f32));
    let mut y = Tensor::scratch(x.shape());
    let rows = y.data_mut().par_chunks_exact_mut(d).zip(x.data().par_chunks_exact(d));
    rows.with_min_len(rows_per_task(d)).for_each(|(y, x)| {
        let Moments { mean, rstd } = moments(x, eps);
        for (y, x) in y.iter_mut().zip(x) {
            *y = (x - mean) * rstd;
        }
        if let Some(w) = &weight {
            y.iter_mut().zip(w.iter()).for_each(|(y, w)| *y *= w);
        }
        if let Some(b) = &bias {
            y.iter_mut().zip(b.iter()).for_each(|(y, b)| *y += b);
        }
    });
    y
}

/// Mean and reciprocal standard deviation of a row.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Moments {
    pub mean: f32,
    pub rstd: f32,
}

pub(in crate::ops) fn moments(x: &[f32], eps: f32) -> Moments {
    let n = x.len() as f32;
    let mean = sum(x, |v| v) / n;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
    Moments { mean, rstd: 1.0 / (variance + eps).sqrt() }
}
