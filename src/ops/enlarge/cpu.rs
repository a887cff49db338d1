use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{at_least, rows_per_task};
use crate::ops::math::wide;

pub(super) fn add(y: &mut Tensor, x: &Tensor, factor: usize) {
    let channels = x.dim(3);
    by_rows(y, x, factor, |y, x| add_row(y, x, channels, factor));
}

wide! {
    fn add_row(y: &mut [f32], x: &[f32], channels: usize, factor: usize) {
        for (several, x) in y.chunks_exact_mut(factor * channels).zip(x.chunks_exact(channels)) {
            for pixel in several.chunks_exact_mut(channels) {
                pixel.iter_mut().zip(x).for_each(|(y, x)| *y += x);
            }
        }
    }
}

pub(super) fn place(y: &mut Tensor, channel: usize, x: &Tensor, factor: usize) {
    let (channels, all) = (x.dim(3), y.dim(3));
    by_rows(y, x, factor, |y, x| {
        for (several, x) in y.chunks_exact_mut(factor * all).zip(x.chunks_exact(channels)) {
            several.chunks_exact_mut(all).for_each(|pixel| pixel[channel..channel + channels].copy_from_slice(x));
        }
    });
}

/// `f` of every row of `y` and the row of `x` it comes from.
fn by_rows(y: &mut Tensor, x: &Tensor, factor: usize, f: impl Fn(&mut [f32], &[f32]) + Sync) {
    let (row, from) = ((y.dim(2) * y.dim(3)).max(1), x.dim(2) * x.dim(3));
    let x = x.host();
    let rows = y.host_mut().par_chunks_exact_mut(row).with_min_len(at_least(rows_per_task(row)));
    // An image is a multiple of `factor` rows high, so that rows of all images are counted as one.
    rows.enumerate().for_each(|(i, y)| f(y, &x[i / factor * from..][..from]));
}

pub(super) fn unfold(y: &mut Tensor, x: &Tensor) {
    let (channels, row) = (y.dim(3), y.dim(2) * y.dim(3));
    let x = x.host();
    let rows = y.host_mut().par_chunks_exact_mut(row.max(1)).with_min_len(at_least(rows_per_task(row)));
    rows.enumerate().for_each(|(i, y)| {
        // Half of the values of a pixel of `x` go to an even row, the other half to the odd one below.
        let from = x[i / 2 * 2 * row..][..2 * row].chunks_exact(4 * channels);
        for (y, x) in y.chunks_exact_mut(2 * channels).zip(from) {
            y.copy_from_slice(&x[i % 2 * 2 * channels..][..2 * channels]);
        }
    });
}
