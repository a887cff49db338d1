use rayon::prelude::*;

use super::Norm;
use crate::device::Tensor;
use crate::ops::cpu::{at_least, repeated};
use crate::ops::math::{exp, wide};

/// Pixels whose sums are one term of an image's: part of the definition of the result.
const BLOCK: usize = 256;
/// Pixels that are added in single precision.
const STEPS: usize = 32;

/// Every channel's affine map, `y = (x − shift)·scale + bias`, [repeated].
struct Maps {
    shift: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, norm: Norm, silu: bool) {
    if x.is_empty() {
        return;
    }
    let channels = x.width();
    let image = x.len() / x.dim(0);
    let (weight, bias) = (norm.weight.elems().to_f32(), norm.bias.elems().to_f32());
    // An image is gone over three times: by one thread, as far as there are images for all, while it is in cache.
    let images = y.host_mut().par_chunks_exact_mut(image).zip(x.host().par_chunks_exact(image));
    images.with_min_len(at_least(1)).for_each(|(y, x)| {
        let maps = Maps::new(x, channels, [&weight, &bias], norm);
        let blocks = y.par_chunks_mut(BLOCK * channels).zip(x.par_chunks(BLOCK * channels));
        blocks.with_min_len(at_least(1)).for_each(|(y, x)| apply(y, x, &maps, silu));
    });
}

impl Maps {
    fn new(image: &[f32], channels: usize, [weight, bias]: [&[f32]; 2], norm: Norm) -> Self {
        let group = |c: usize| c / (channels / norm.groups);
        let means = group_means(image, norm.groups, &vec![0.0; channels], sums);
        // The mean is subtracted rounded, so what it lost is corrected for.
        let shift: Vec<f32> = (0..channels).map(|c| means[group(c)] as f32).collect();
        let squares = group_means(image, norm.groups, &shift, sums_of_squares);
        let lost = |c: usize| means[group(c)] - f64::from(shift[c]);
        let scale = |c: usize| {
            let variance = squares[group(c)] - lost(c).powi(2);
            f64::from(weight[c]) / (variance + f64::from(norm.eps)).sqrt()
        };
        let all = |f: &dyn Fn(usize) -> f64| repeated(&(0..channels).map(|c| f(c) as f32).collect::<Vec<_>>());
        Self { scale: all(&scale), bias: all(&|c| f64::from(bias[c]) - lost(c) * scale(c)), shift: repeated(&shift) }
    }
}

/// The mean over each group of what `add_up` adds up per channel of a block of pixels.
fn group_means(image: &[f32], groups: usize, shift: &[f32], add_up: fn(&mut [f64], &[f32], &[f32])) -> Vec<f64> {
    let channels = shift.len();
    let of_block = |block: &[f32]| {
        let mut sums = vec![0.0; channels];
        add_up(&mut sums, block, shift);
        sums
    };
    let blocks: Vec<Vec<f64>> = image.par_chunks(BLOCK * channels).with_min_len(at_least(1)).map(of_block).collect();
    let size = (image.len() / groups) as f64;
    let group = |g: usize| g * channels / groups..(g + 1) * channels / groups;
    (0..groups).map(|g| blocks.iter().flat_map(|sums| &sums[group(g)]).sum::<f64>() / size).collect()
}

wide! {
    /// Adds the values of each channel to `sums`; `shift` plays no part.
    fn sums(sums: &mut [f64], block: &[f32], shift: &[f32]) {
        add_up(sums, block, |v, _| v, shift);
    }
}

wide! {
    /// Adds the squares of each channel's values minus `shift` to `sums`.
    fn sums_of_squares(sums: &mut [f64], block: &[f32], shift: &[f32]) {
        add_up(sums, block, |v, s| (v - s) * (v - s), shift);
    }
}

/// Short sums in single precision, their sum in double; always in the same order.
#[inline(always)]
fn add_up(sums: &mut [f64], block: &[f32], f: impl Fn(f32, f32) -> f32, shift: &[f32]) {
    /// Channels at a time.
    const TOGETHER: usize = 16;
    let channels = sums.len();
    for first in (0..channels).step_by(TOGETHER) {
        let n = TOGETHER.min(channels - first);
        for pixels in block.chunks(STEPS * channels) {
            let mut lanes = [0.0f32; TOGETHER];
            if n == TOGETHER {
                let shift: &[f32; TOGETHER] = shift[first..][..TOGETHER].try_into().expect("as many lanes");
                for pixel in pixels.chunks_exact(channels) {
                    let pixel: &[f32; TOGETHER] = pixel[first..][..TOGETHER].try_into().expect("as many lanes");
                    for i in 0..TOGETHER {
                        lanes[i] += f(pixel[i], shift[i]);
                    }
                }
            } else {
                for pixel in pixels.chunks_exact(channels) {
                    for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                        *lane += f(pixel[first + i], shift[first + i]);
                    }
                }
            }
            sums[first..][..n].iter_mut().zip(lanes).for_each(|(s, l)| *s += f64::from(l));
        }
    }
}

wide! {
    fn apply(y: &mut [f32], x: &[f32], maps: &Maps, silu: bool) {
        let several = maps.shift.len();
        for (y, x) in y.chunks_mut(several).zip(x.chunks(several)) {
            let maps = maps.shift.iter().zip(&maps.scale).zip(&maps.bias);
            for ((y, x), ((shift, scale), bias)) in y.iter_mut().zip(x).zip(maps) {
                *y = (x - shift).mul_add(*scale, *bias);
            }
        }
        if silu {
            y.iter_mut().for_each(|y| *y /= 1.0 + exp(-*y));
        }
    }
}
