use rayon::prelude::*;

use super::EPS;
use crate::device::Tensor;
use crate::ops::cpu::{chunk, dot, rows_per_task, sum};
use crate::ops::layer_norm::moments;

pub(super) fn forward(x: &Tensor, modulation: &Tensor, shift: usize, scale: usize) -> Tensor {
    let (n, d) = (x.dim(1), x.dim(2));
    let mut y = Tensor::scratch(x.shape());
    let rows = y.data_mut().par_chunks_exact_mut(d).zip(x.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (y, x))| {
        let m = moments(x, EPS);
        let (shift, scale) = (chunk(modulation, i / n, shift, d), chunk(modulation, i / n, scale, d));
        for (((y, x), shift), scale) in y.iter_mut().zip(x).zip(shift).zip(scale) {
            *y = (x - m.mean) * m.rstd * (1.0 + scale) + shift;
        }
    });
    y
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, modulation: &Tensor, scale: usize) {
    let (n, d) = (x.dim(1), x.dim(2));
    let rows = dx.data_mut().par_chunks_exact_mut(d).zip(dy.data().par_chunks_exact(d));
    let rows = rows.zip(x.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each_init(
        || (vec![0.0f32; d], vec![0.0f32; d]),
        |(g, hat), (i, ((dx, dy), x))| {
            let m = moments(x, EPS);
            let scale = chunk(modulation, i / n, scale, d);
            for ((((g, hat), dy), x), scale) in g.iter_mut().zip(hat.iter_mut()).zip(dy).zip(x).zip(scale) {
                *g = dy * (1.0 + scale);
                *hat = (x - m.mean) * m.rstd;
            }
            let mean = sum(g, |v| v) / d as f32;
            let along = dot(g, hat) / d as f32;
            for ((dx, g), hat) in dx.iter_mut().zip(g.iter()).zip(hat.iter()) {
                *dx += m.rstd * (g - mean - hat * along);
            }
        },
    );
}
