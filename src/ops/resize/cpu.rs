use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::at_least;
use crate::ops::math::wide;
use crate::ops::resample::{antialiased, cubic};

/// Bits after the point of Pillow's 8-bit resampling weights.
const PRECISION: u32 = 32 - 8 - 2;

pub(super) fn bicubic(out: &mut Tensor, middle: &mut Tensor, images: &Tensor, rows_first: bool) {
    if rows_first {
        to_height(middle, images);
        to_width(out, middle);
    } else {
        to_width(middle, images);
        to_height(out, middle);
    }
}

fn to_width(out: &mut Tensor, x: &Tensor) {
    let (from, to) = (x.dim(2), out.dim(2));
    if from == to {
        out.host_bytes_mut().copy_from_slice(x.host_bytes());
        return;
    }
    let taps = taps(from, to);
    let rows = out.host_bytes_mut().par_chunks_exact_mut(to * 3).zip(x.host_bytes().par_chunks_exact(from * 3));
    rows.for_each(|(out, row)| {
        out.as_chunks_mut::<3>().0.iter_mut().zip(&taps).for_each(|(pixel, t)| *pixel = t.apply(row, 3));
    });
}

fn to_height(out: &mut Tensor, x: &Tensor) {
    let (from, to, row) = (x.dim(1), out.dim(1), x.dim(2) * 3);
    if from == to {
        out.host_bytes_mut().copy_from_slice(x.host_bytes());
        return;
    }
    let taps = taps(from, to);
    let images = out.host_bytes_mut().par_chunks_exact_mut(to * row).zip(x.host_bytes().par_chunks_exact(from * row));
    images.for_each(|(out, x)| {
        for (out, t) in out.chunks_exact_mut(row).zip(&taps) {
            let pixels = out.as_chunks_mut::<3>().0.iter_mut().enumerate();
            pixels.for_each(|(i, pixel)| *pixel = t.apply(&x[i * 3..], row));
        }
    });
}

/// The inputs of one output, from `first` on, and their weights.
pub(super) struct Taps {
    pub(super) first: usize,
    pub(super) weights: Vec<i32>,
}

impl Taps {
    /// The three channels, of pixels that lie `stride` bytes apart.
    fn apply(&self, data: &[u8], stride: usize) -> [u8; 3] {
        let mut sums = [1i32 << (PRECISION - 1); 3];
        for (i, weight) in self.weights.iter().enumerate() {
            let at = (self.first + i) * stride;
            for (sum, byte) in sums.iter_mut().zip(&data[at..at + 3]) {
                *sum += i32::from(*byte) * weight;
            }
        }
        sums.map(|s| (s >> PRECISION).clamp(0, 255) as u8)
    }
}

pub(super) fn taps(from: usize, to: usize) -> Vec<Taps> {
    let fixed = |w: f64| {
        let w = w * f64::from(1 << PRECISION);
        (w + 0.5f64.copysign(w)) as i32
    };
    let runs = antialiased(from, to, 2.0, |x| cubic(x, -0.5)).into_iter();
    runs.map(|(first, weights)| Taps { first, weights: weights.into_iter().map(fixed).collect() }).collect()
}

pub(super) fn bilinear(out: &mut Tensor, x: &Tensor) {
    let &[_, h, w, c] = x.shape() else { unreachable!("checked") };
    let (height, width) = (out.dim(1), out.dim(2));
    let (down, across) = (super::between(h, height), super::between(w, width));
    let x = x.host();
    let lines = out.host_mut().par_chunks_exact_mut(width * c).enumerate();
    lines.with_min_len(at_least(1)).for_each(|(line, out)| {
        let (above, below, share) = down[line % height];
        let row = |row: usize| &x[(line / height * h + row) * w * c..][..w * c];
        mix(out, [row(above), row(below)], share, &across);
    });
}

wide! {
    /// One line of pixels between two.
    fn mix(out: &mut [f32], rows: [&[f32]; 2], down: f32, across: &[(usize, usize, f32)]) {
        let [above, below] = rows;
        let c = out.len() / across.len();
        for (out, (left, right, share)) in out.chunks_exact_mut(c).zip(across) {
            let corners = [(above, left), (above, right), (below, left), (below, right)];
            let [a, b, d, e] = corners.map(|(line, at)| &line[at * c..][..c]);
            for (i, out) in out.iter_mut().enumerate() {
                let upper = (1.0 - share) * a[i] + share * b[i];
                let lower = (1.0 - share) * d[i] + share * e[i];
                *out = (1.0 - down) * upper + down * lower;
            }
        }
    }
}
