use rayon::prelude::*;

use super::{Chunk, EPS};
use crate::device::Tensor;
use crate::ops::cpu::{dot, rows_per_task, scratch, sum};
use crate::ops::gate;
use crate::ops::layer_norm::statistics;
use crate::ops::math::wide;

impl Chunk<'_> {
    /// The chunk of sample `b`.
    pub(in crate::ops) fn of(&self, b: usize, d: usize) -> &[f32] {
        &self.modulation.host()[b * self.modulation.width() + self.index * d..][..d]
    }
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, shift: Chunk, scale: Chunk) {
    let (n, d) = (x.dim(1), x.dim(2));
    let rows = y.host_mut().par_chunks_exact_mut(d).zip(x.host().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (y, x))| row(y, x, shift.of(i / n, d), scale.of(i / n, d)));
}

wide! {
    fn row(y: &mut [f32], x: &[f32], shift: &[f32], scale: &[f32]) {
        let s = statistics(x, EPS);
        for (((y, x), shift), scale) in y.iter_mut().zip(x).zip(shift).zip(scale) {
            *y = (x - s.mean) * s.rstd * (1.0 + scale) + shift;
        }
    }
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk, gated: Option<(&mut Tensor, Chunk)>) {
    of_input(dx, dy, x, scale);
    if let Some((gated, gate)) = gated {
        *gated = gate::backward(dx, gate);
    }
}

fn of_input(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk) {
    let (n, d) = (x.dim(1), x.dim(2));
    let rows = dx.host_mut().par_chunks_exact_mut(d).zip(dy.host().par_chunks_exact(d));
    let rows = rows.zip(x.host().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, ((dx, dy), x))| {
        scratch(2 * d, |kept| row_backward(dx, dy, x, scale.of(i / n, d), kept));
    });
}

wide! {
    fn row_backward(dx: &mut [f32], dy: &[f32], x: &[f32], scale: &[f32], kept: &mut [f32]) {
        let s = statistics(x, EPS);
        let (g, hat) = kept.split_at_mut(x.len());
        for ((((g, hat), dy), x), scale) in g.iter_mut().zip(hat.iter_mut()).zip(dy).zip(x).zip(scale) {
            *g = dy * (1.0 + scale);
            *hat = (x - s.mean) * s.rstd;
        }
        let mean = sum(g, |v| v) / g.len() as f32;
        let along = dot(g, hat) / g.len() as f32;
        for ((dx, g), hat) in dx.iter_mut().zip(g.iter()).zip(hat.iter()) {
            *dx += s.rstd * (g - mean - hat * along);
        }
    }
}
