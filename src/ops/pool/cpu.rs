use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{at_least, rows_per_task};

pub(super) fn average(y: &mut Tensor, x: &Tensor, [down, across]: [usize; 2]) {
    let (height, out_height, channels) = (x.dim(1), y.dim(1), y.dim(3));
    let (row, out_row) = (x.dim(2) * channels, y.dim(2) * channels);
    let (x, count) = (x.host(), (down * across) as f32);
    let rows = y.host_mut().par_chunks_exact_mut(out_row.max(1)).with_min_len(at_least(rows_per_task(out_row)));
    rows.enumerate().for_each(|(i, y)| {
        let first = i / out_height * height + i % out_height * down;
        y.fill(0.0);
        for line in x[first * row..][..down * row].chunks_exact(row) {
            for (y, several) in y.chunks_exact_mut(channels).zip(line.chunks_exact(across * channels)) {
                for pixel in several.chunks_exact(channels) {
                    y.iter_mut().zip(pixel).for_each(|(y, v)| *y += v);
                }
            }
        }
        y.iter_mut().for_each(|v| *v /= count);
    });
}
