use rayon::prelude::*;

use super::Pyramid;
use crate::device::Tensor;
use crate::ops::cpu::{at_least, scratch};
use crate::ops::math::{self, wide};

/// Tokens per task.
const TOKENS: usize = 32;

/// One level as the points see it.
#[derive(Clone, Copy)]
struct Level {
    /// Height and width.
    size: [usize; 2],
    /// Its first token.
    first: usize,
}

pub(super) fn forward(
    out: &mut Tensor,
    values: &Tensor,
    offsets: &Tensor,
    weights: &Tensor,
    pyramid: Pyramid,
    heads: usize,
) {
    let (n, width, per_token) = (values.dim(1), values.dim(2), weights.width());
    let mut first = 0;
    let level = |size: &[usize; 2]| {
        let level = Level { size: *size, first };
        first += size[0] * size[1];
        level
    };
    let levels: Vec<Level> = pyramid.0.iter().map(level).collect();
    let centres = centres(&levels);
    let (values, offsets, weights) = (values.host(), offsets.host(), weights.host());
    let tokens = out.host_mut().par_chunks_exact_mut(width).enumerate();
    tokens.with_min_len(at_least(TOKENS)).for_each(|(token, out)| {
        scratch(per_token, |shares| {
            shares.copy_from_slice(&weights[token * per_token..][..per_token]);
            let look = Look {
                values: &values[token / n * n * width..][..n * width],
                width,
                levels: &levels,
                centre: centres[token % n],
            };
            attend(out, shares, &offsets[token * 2 * per_token..][..2 * per_token], &look, heads);
        });
    });
}

/// Where each token lies, from 0 to 1 across and down.
fn centres(levels: &[Level]) -> Vec<[f32; 2]> {
    let of = |level: &Level| {
        let [h, w] = level.size;
        (0..h * w)
            .map(move |i| [(i % w) as f32 + 0.5, (i / w) as f32 + 0.5])
            .map(move |[x, y]| [x / w as f32, y / h as f32])
    };
    levels.iter().flat_map(of).collect()
}

/// What one token looks at.
struct Look<'a> {
    /// Of one sample.
    values: &'a [f32],
    width: usize,
    levels: &'a [Level],
    centre: [f32; 2],
}

wide! {
    /// All heads of one token; `shares` are the weights before the softmax.
    fn attend(out: &mut [f32], shares: &mut [f32], offsets: &[f32], look: &Look, heads: usize) {
        let (d, points) = (out.len() / heads, shares.len() / heads);
        let per_level = points / look.levels.len();
        out.fill(0.0);
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            let shares = &mut shares[head * points..][..points];
            let max = shares.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            shares.iter_mut().for_each(|s| *s = math::exp(*s - max));
            let total: f32 = shares.iter().sum();
            for (i, share) in shares.iter().enumerate() {
                let level = look.levels[i / per_level];
                let at = 2 * (head * points + i);
                let [h, w] = level.size;
                let x = look.centre[0] * w as f32 + offsets[at] - 0.5;
                let y = look.centre[1] * h as f32 + offsets[at + 1] - 0.5;
                let (left, top) = (x.floor(), y.floor());
                let (across, down) = (x - left, y - top);
                let corners = [
                    (0.0, 0.0, (1.0 - across) * (1.0 - down)),
                    (1.0, 0.0, across * (1.0 - down)),
                    (0.0, 1.0, (1.0 - across) * down),
                    (1.0, 1.0, across * down),
                ];
                for (right, below, part) in corners {
                    let (column, row) = (left + right, top + below);
                    // Also false for what is not a number.
                    let inside = column >= 0.0 && row >= 0.0 && column < w as f32 && row < h as f32;
                    if !inside {
                        continue;
                    }
                    let token = level.first + row as usize * w + column as usize;
                    let value = &look.values[token * look.width + head * d..][..d];
                    let factor = share / total * part;
                    out.iter_mut().zip(value).for_each(|(o, v)| *o = factor.mul_add(*v, *o));
                }
            }
        }
    }
}
