//! A task makes some rows of the result. Channels go through in blocks of a register, whose weights stay at hand while the
//! window slides along the row.

use rayon::prelude::*;

use crate::device::{Tensor, workers};
use crate::ops::cpu::{Shared, at_least, repeated};
use crate::ops::math::wide;
use crate::ops::pointwise::{Bend, bend};

/// Channels in a block.
const LANES: usize = 16;
/// Elements of the result per task, about.
const GRAIN: usize = 1 << 14;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, stride: [usize; 2], by: Bend) {
    if y.is_empty() {
        return;
    }
    let (images, height, out_height) = (x.dim(0), x.dim(1), y.dim(1));
    let (row, out_row) = (x.dim(2) * x.dim(3), y.dim(2) * y.dim(3));
    let bias = repeated(&bias.elems().to_f32());
    let zeros = vec![0.0; row];
    let bands = (out_height * out_row).div_ceil(GRAIN).max(workers().div_ceil(images)).min(out_height);
    let (weights, width, channels) = (w.host(), x.dim(2), x.dim(3));
    let (x, out) = (x.host(), Shared::new(y.host_mut()));
    (0..images * bands).into_par_iter().with_min_len(at_least(1)).for_each(|task| {
        let (image, band) = (task / bands, task % bands);
        for line in band * out_height / bands..(band + 1) * out_height / bands {
            // SAFETY: every row of the result belongs to one task.
            let to = unsafe { out.slice((image * out_height + line) * out_row, out_row) };
            let around = |k: usize| {
                let at = (line * stride[0] + k).checked_sub(if weights.len() == 9 * channels { 1 } else { 2 });
                match at {
                    Some(at) if at < height => &x[(image * height + at) * row..][..row],
                    _ => &zeros[..],
                }
            };
            if weights.len() == 9 * channels {
                three(to, std::array::from_fn(around), weights, [width, channels, stride[1]]);
            } else {
                five(to, std::array::from_fn(around), weights, [width, channels, stride[1]]);
            }
            bend(to, &bias, by);
        }
    });
}

wide! {
    fn three(out: &mut [f32], rows: [&[f32]; 3], weights: &[f32], size: [usize; 3]) {
        line::<3>(out, rows, weights, size);
    }
}

wide! {
    fn five(out: &mut [f32], rows: [&[f32]; 5], weights: &[f32], size: [usize; 3]) {
        line::<5>(out, rows, weights, size);
    }
}

/// One row of the result from the `K` rows its windows meet, which are `width` pixels of `channels`.
#[inline(always)]
fn line<const K: usize>(out: &mut [f32], rows: [&[f32]; K], weights: &[f32], [width, channels, stride]: [usize; 3]) {
    let mut first = 0;
    while first < channels {
        let (left, size) = (channels - first, [width, channels]);
        match (stride, left) {
            (1, LANES..) => block::<K, 1, LANES>(out, rows, weights, first, size),
            (1, 8..) => block::<K, 1, 8>(out, rows, weights, first, size),
            (1, _) => block::<K, 1, 1>(out, rows, weights, first, size),
            (_, LANES..) => block::<K, 2, LANES>(out, rows, weights, first, size),
            (_, 8..) => block::<K, 2, 8>(out, rows, weights, first, size),
            (_, _) => block::<K, 2, 1>(out, rows, weights, first, size),
        }
        first += if left >= LANES {
            LANES
        } else if left >= 8 {
            8
        } else {
            1
        };
    }
}

/// Windows that are summed up together: they share most pixels, and the weights.
const TOGETHER: usize = 4;

/// `N` channels of a row, from channel `first` on, windows `S` apart.
#[inline(always)]
fn block<const K: usize, const S: usize, const N: usize>(
    out: &mut [f32],
    rows: [&[f32]; K],
    weights: &[f32],
    first: usize,
    [width, channels]: [usize; 2],
) {
    let weights: [[[f32; N]; K]; K] =
        std::array::from_fn(|y| std::array::from_fn(|x| lanes(weights, (y * K + x) * channels + first)));
    let windows = out.len() / channels;
    // The windows that are inside the image.
    let end = windows.min((width + K / 2).saturating_sub(K - 1).div_ceil(S));
    let start = (K / 2).div_ceil(S).min(end);
    for x in (0..start).chain(end..windows) {
        let (from, to) = ((K / 2).saturating_sub(x * S), K.min(width + K / 2 - x * S));
        let mut sum = [0.0; N];
        for (row, weights) in rows.iter().zip(&weights) {
            for (tap, weight) in weights.iter().enumerate().take(to).skip(from) {
                add(&mut sum, lanes(row, (x * S + tap - K / 2) * channels + first), *weight);
            }
        }
        out[x * channels + first..][..N].copy_from_slice(&sum);
    }
    let mut x = start;
    while x + TOGETHER <= end {
        let sums = sums::<K, S, N, TOGETHER>(rows, &weights, (x * S - K / 2) * channels + first, channels);
        for (i, sum) in sums.iter().enumerate() {
            out[(x + i) * channels + first..][..N].copy_from_slice(sum);
        }
        x += TOGETHER;
    }
    for x in x..end {
        let [sum] = sums::<K, S, N, 1>(rows, &weights, (x * S - K / 2) * channels + first, channels);
        out[x * channels + first..][..N].copy_from_slice(&sum);
    }
}

/// `P` neighbouring windows inside the image, of which the first begins at element `at` of its rows.
#[inline(always)]
fn sums<const K: usize, const S: usize, const N: usize, const P: usize>(
    rows: [&[f32]; K],
    weights: &[[[f32; N]; K]; K],
    at: usize,
    channels: usize,
) -> [[f32; N]; P] {
    let mut sums = [[0.0; N]; P];
    for (row, weights) in rows.iter().zip(weights) {
        for column in 0..(P - 1) * S + K {
            let pixel = lanes(row, at + column * channels);
            for (p, sum) in sums.iter_mut().enumerate() {
                if column >= p * S && column < p * S + K {
                    add(sum, pixel, weights[column - p * S]);
                }
            }
        }
    }
    sums
}

#[inline(always)]
fn lanes<const N: usize>(data: &[f32], at: usize) -> [f32; N] {
    *data[at..].first_chunk().expect("N of them")
}

#[inline(always)]
fn add<const N: usize>(sum: &mut [f32; N], pixel: [f32; N], weights: [f32; N]) {
    for ((s, v), w) in sum.iter_mut().zip(pixel).zip(weights) {
        *s = v.mul_add(w, *s);
    }
}
