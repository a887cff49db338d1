use rayon::prelude::*;

use super::Axis;
use crate::device::Tensor;
use crate::ops::cpu::scratch;
use crate::ops::math::wide;

pub(super) fn forward(out: &mut Tensor, planes: &Tensor, rows: &Axis, columns: &Axis, mean: [f64; 3], std: [f64; 3]) {
    let (h, w, width) = (rows.from(), columns.from(), columns.to());
    let size = (rows.to() * width).max(1);
    let planes = out.host_mut().par_chunks_exact_mut(size).zip(planes.host().par_chunks_exact((h * w).max(1)));
    planes.enumerate().for_each(|(i, (out, plane))| {
        let (mean, std) = (mean[i % 3] as f32, std[i % 3] as f32);
        scratch(h * width, |middle| {
            for (row, from) in middle.chunks_exact_mut(width).zip(plane.chunks_exact(w)) {
                for (v, t) in row.iter_mut().zip(&columns.taps) {
                    let run = &from[t.first..][..t.weights.len()];
                    *v = run.iter().zip(&t.weights).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum));
                }
            }
            for (row, t) in out.chunks_exact_mut(width).zip(&rows.taps) {
                row.fill(0.0);
                for (from, weight) in middle[t.first * width..].chunks_exact(width).zip(&t.weights) {
                    add(row, from, *weight);
                }
                normalise(row, mean, std);
            }
        });
    });
}

wide! {
    fn add(sum: &mut [f32], x: &[f32], weight: f32) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s = x.mul_add(weight, *s));
    }
}

wide! {
    fn normalise(row: &mut [f32], mean: f32, std: f32) {
        row.iter_mut().for_each(|v| *v = (*v - mean) / std);
    }
}
