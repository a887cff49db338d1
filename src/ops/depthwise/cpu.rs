//! A task makes some rows of the result. Channels go through in blocks of a register, whose weights stay at hand while the
//! window slides along the row.

use std::ops::Range;

use rayon::prelude::*;

use crate::device::{Tensor, workers};
use crate::ops::cpu::{Shared, at_least, repeated};
use crate::ops::math::wide;
use crate::ops::pointwise::{Bend, bend};

/// Channels in a block.
const LANES: usize = 16;
/// Elements of the result per task, about.
const GRAIN: usize = 1 << 14;

pub(super) fn arrange(out: &mut Tensor, w: &Tensor) {
    let (taps, channels) = (out.dim(0), out.dim(1));
    let w = w.elems().to_f32();
    for (tap, row) in out.host_mut().chunks_exact_mut(channels.max(1)).enumerate() {
        row.iter_mut().zip(w[tap..].iter().step_by(taps)).for_each(|(o, v)| *o = *v);
    }
}

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
    let whole = channels / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        block::<K, LANES>(out, rows, weights, first, [width, channels, stride]);
    }
    let mut first = whole;
    while first + 8 <= channels {
        block::<K, 8>(out, rows, weights, first, [width, channels, stride]);
        first += 8;
    }
    while first < channels {
        block::<K, 1>(out, rows, weights, first, [width, channels, stride]);
        first += 1;
    }
}

/// `N` channels of a row, from channel `first` on.
#[inline(always)]
fn block<const K: usize, const N: usize>(
    out: &mut [f32],
    rows: [&[f32]; K],
    weights: &[f32],
    first: usize,
    [width, channels, stride]: [usize; 3],
) {
    let lanes = |data: &[f32], at: usize| -> [f32; N] { data[at..at + N].try_into().expect("N of them") };
    let weights: [[[f32; N]; K]; K] =
        std::array::from_fn(|y| std::array::from_fn(|x| lanes(weights, (y * K + x) * channels + first)));
    let windows = out.len() / channels;
    // The windows that are inside the image.
    let inside = (K / 2).div_ceil(stride)..windows.min((width + K / 2).saturating_sub(K - 1).div_ceil(stride));
    let mut window = |x: usize, taps: Range<usize>| {
        let mut sum = [0.0; N];
        for (row, weights) in rows.iter().zip(&weights) {
            for tap in taps.clone() {
                let values = lanes(row, (x * stride + tap - K / 2) * channels + first);
                for ((s, v), w) in sum.iter_mut().zip(values).zip(weights[tap]) {
                    *s = v.mul_add(w, *s);
                }
            }
        }
        out[x * channels + first..][..N].copy_from_slice(&sum);
    };
    for x in (0..windows).filter(|x| !inside.contains(x)) {
        let from = (K / 2).saturating_sub(x * stride);
        window(x, from..K.min(width + K / 2 - x * stride));
    }
    for x in inside {
        window(x, 0..K);
    }
}
