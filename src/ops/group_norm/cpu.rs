use rayon::prelude::*;

use super::Norm;
use crate::device::Tensor;
use crate::ops::cpu::{at_least, repeated, scratch};
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

/// What is known of the groups of an image.
struct Moments {
    /// The mean of each channel's group, rounded.
    shift: Vec<f32>,
    /// What it lost by that.
    lost: Vec<f64>,
    /// The reciprocal deviation of each channel's group.
    rstd: Vec<f64>,
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
        let maps = Moments::of(x, channels, norm).maps([&weight, &bias]);
        let blocks = y.par_chunks_mut(BLOCK * channels).zip(x.par_chunks(BLOCK * channels));
        blocks.with_min_len(at_least(1)).for_each(|(y, x)| apply(y, x, &maps, silu));
    });
}

impl Moments {
    fn of(image: &[f32], channels: usize, norm: Norm) -> Self {
        let group = |c: usize| c / (channels / norm.groups);
        let means = group_means(image, norm.groups, &vec![0.0; channels], sums);
        // The mean is subtracted rounded, so what it lost is corrected for.
        let shift: Vec<f32> = (0..channels).map(|c| means[group(c)] as f32).collect();
        let squares = group_means(image, norm.groups, &shift, sums_of_squares);
        let lost: Vec<f64> = (0..channels).map(|c| means[group(c)] - f64::from(shift[c])).collect();
        let rstd = |c: usize| 1.0 / (squares[group(c)] - lost[c].powi(2) + f64::from(norm.eps)).sqrt();
        Self { rstd: (0..channels).map(rstd).collect(), shift, lost }
    }

    fn maps(&self, [weight, bias]: [&[f32]; 2]) -> Maps {
        let channels = self.shift.len();
        let scale = |c: usize| f64::from(weight[c]) * self.rstd[c];
        let all = |f: &dyn Fn(usize) -> f64| repeated(&(0..channels).map(|c| f(c) as f32).collect::<Vec<_>>());
        let bias = all(&|c| f64::from(bias[c]) - self.lost[c] * scale(c));
        Maps { scale: all(&scale), bias, shift: repeated(&self.shift) }
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

/// With `v = (x − shift)·scale + bias`, `d = dy·∂y/∂v` and the means `m₁`, `m₂` over a group of `d·weight` and of that times the
/// normalised `x̂`, the gradient is `rstd·(d·weight − m₁ − x̂·m₂)`: of each channel again an affine map, of `d` and of `x`.
pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, norm: Norm, silu: bool) {
    if x.is_empty() {
        return;
    }
    let channels = x.width();
    let image = x.len() / x.dim(0);
    let (weight, bias) = (norm.weight.elems().to_f32(), norm.bias.elems().to_f32());
    let images = dx.host_mut().par_chunks_exact_mut(image).zip(dy.host().par_chunks_exact(image));
    let images = images.zip(x.host().par_chunks_exact(image));
    images.with_min_len(at_least(1)).for_each(|((dx, dy), x)| {
        let moments = Moments::of(x, channels, norm);
        let maps = moments.maps([&weight, &bias]);
        let length = BLOCK * channels;
        let blocks = dy.par_chunks(length).zip(x.par_chunks(length)).with_min_len(at_least(1));
        let sums: Vec<[Vec<f64>; 2]> = blocks.map(|(dy, x)| gradient_sums(dy, x, channels, &maps, silu)).collect();
        let [along, offset] = moments.corrections(&sums, &weight, norm.groups, image);
        let blocks = dx.par_chunks_mut(length).zip(dy.par_chunks(length)).zip(x.par_chunks(length));
        blocks.with_min_len(at_least(1)).for_each(|((dx, dy), x)| {
            scratch(dy.len(), |d| {
                d.copy_from_slice(dy);
                if silu {
                    through_silu(d, x, &maps);
                }
                add_gradient(dx, d, x, &maps, [&along, &offset]);
            });
        });
    });
}

/// For each channel of a block of pixels the sums of `d` and of `d·(x − shift)`.
fn gradient_sums(dy: &[f32], x: &[f32], channels: usize, maps: &Maps, silu: bool) -> [Vec<f64>; 2] {
    let mut both = [vec![0.0; channels], vec![0.0; channels]];
    scratch(dy.len(), |d| {
        d.copy_from_slice(dy);
        if silu {
            through_silu(d, x, maps);
        }
        sums(&mut both[0], d, &maps.shift[..channels]);
        times_apart(d, x, &maps.shift);
        sums(&mut both[1], d, &maps.shift[..channels]);
    });
    both
}

impl Moments {
    /// The factor on `x − shift` and the offset of each channel's gradient, [repeated]; `sums` of all blocks.
    fn corrections(&self, sums: &[[Vec<f64>; 2]], weight: &[f32], groups: usize, image: usize) -> [Vec<f32>; 2] {
        let (channels, size) = (weight.len(), (image / groups) as f64);
        let of = |k: usize, c: usize| f64::from(weight[c]) * sums.iter().map(|block| block[k][c]).sum::<f64>();
        let [mut along, mut offset] = [vec![0.0; channels], vec![0.0; channels]];
        for first in (0..channels).step_by(channels / groups) {
            let group = first..first + channels / groups;
            let (rstd, lost) = (self.rstd[first], self.lost[first]);
            let [d, apart] = [0, 1].map(|k| group.clone().map(|c| of(k, c)).sum::<f64>() / size);
            let normalised = rstd * (apart - lost * d);
            along[group.clone()].fill((-rstd * rstd * normalised) as f32);
            offset[group].fill((rstd * (rstd * lost * normalised - d)) as f32);
        }
        [repeated(&along), repeated(&offset)]
    }
}

wide! {
    /// The gradient to `v` in the place of that to `v·sigmoid(v)`.
    fn through_silu(d: &mut [f32], x: &[f32], maps: &Maps) {
        let several = maps.shift.len();
        for (d, x) in d.chunks_mut(several).zip(x.chunks(several)) {
            let maps = maps.shift.iter().zip(&maps.scale).zip(&maps.bias);
            for ((d, x), ((shift, scale), bias)) in d.iter_mut().zip(x).zip(maps) {
                let v = (x - shift).mul_add(*scale, *bias);
                let s = 1.0 / (1.0 + exp(-v));
                *d *= s + v * s * (1.0 - s);
            }
        }
    }
}

wide! {
    fn times_apart(d: &mut [f32], x: &[f32], shift: &[f32]) {
        for (d, x) in d.chunks_mut(shift.len()).zip(x.chunks(shift.len())) {
            d.iter_mut().zip(x).zip(shift).for_each(|((d, x), shift)| *d *= x - shift);
        }
    }
}

wide! {
    fn add_gradient(dx: &mut [f32], d: &[f32], x: &[f32], maps: &Maps, corrections: [&[f32]; 2]) {
        let several = maps.shift.len();
        for ((dx, d), x) in dx.chunks_mut(several).zip(d.chunks(several)).zip(x.chunks(several)) {
            let maps = maps.shift.iter().zip(&maps.scale).zip(corrections[0]).zip(corrections[1]);
            for (((dx, d), x), (((shift, scale), along), offset)) in dx.iter_mut().zip(d).zip(x).zip(maps) {
                *dx += d.mul_add(*scale, (x - shift).mul_add(*along, *offset));
            }
        }
    }
}
