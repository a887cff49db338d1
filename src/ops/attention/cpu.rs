//! Row tiles of queries against all keys: the scores of one tile stay in cache, the whole `n x n` matrix never exists. Keys
//! and values of a head are packed once for all its tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, Mask, OutputGrad, Part, PartGrad};
use crate::device::{Elems, Tensor, workers};
use crate::ops::cpu::gemm::{Lane, Mat, Packed};
use crate::ops::cpu::{Shared, at_least, dot, scratch, sum};
use crate::ops::math::{self, wide};

/// Scores of a tile: as many as stay in the second-level cache beside what they are made of.
const SCORES: usize = 48 << 10;

/// Queries per tile, for rows of `n` scores.
pub(in crate::ops) fn tile_rows(n: usize) -> usize {
    (SCORES / n.max(1) / 12 * 12).clamp(12, 96)
}

/// One head of one sample, seen in a token-major tensor.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Head<'a> {
    data: &'a [f32],
    /// Elements from token to token.
    stride: usize,
    tokens: usize,
    d: usize,
}

impl<'a> Head<'a> {
    pub(in crate::ops) fn of(t: &'a Tensor, b: usize, h: usize, heads: usize) -> Self {
        let (tokens, stride) = (t.dim(1), t.dim(2));
        let d = stride / heads;
        Self { data: &t.host()[b * tokens * stride + h * d..], stride, tokens, d }
    }

    /// `[tokens, d]`.
    pub(in crate::ops) fn mat(self) -> Mat<'a> {
        Mat::strided(Elems::F32(self.data), self.tokens, self.d, self.stride)
    }

    pub(in crate::ops) fn rows(self, tokens: Range<usize>) -> Mat<'a> {
        self.mat().rows_in(tokens)
    }

    fn token(self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.d]
    }
}

/// One head of one sample of a tensor that is written.
#[derive(Clone, Copy)]
pub(in crate::ops) struct HeadOut {
    all: Shared,
    first: usize,
    stride: usize,
    d: usize,
}

impl HeadOut {
    pub(in crate::ops) fn of(shared: Shared, like: &Tensor, b: usize, h: usize, heads: usize) -> Self {
        let (tokens, stride) = (like.dim(1), like.dim(2));
        let d = stride / heads;
        Self { all: shared, first: b * tokens * stride + h * d, stride, d }
    }

    /// Token `i` and the distance of tokens.
    pub(in crate::ops) fn to(self, i: usize) -> (*mut f32, usize) {
        (self.all.at(self.first + i * self.stride), self.stride)
    }

    /// # Safety
    /// Nobody else has this head of this sample meanwhile.
    unsafe fn token(self, i: usize) -> &'static mut [f32] {
        // SAFETY: passed on from the caller.
        unsafe { self.all.slice(self.first + i * self.stride, self.d) }
    }
}

/// Cuts `buffer` into pieces of the given lengths.
pub(in crate::ops) fn cut<const N: usize>(mut buffer: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    lengths.map(|n| {
        let (head, tail) = std::mem::take(&mut buffer).split_at_mut(n);
        buffer = tail;
        head
    })
}

/// Packs `of(part)` of every part, one after another in `buffer`.
fn pack_parts<'a, 'b>(
    mut buffer: &'a mut [f32],
    lane: Lane,
    parts: &[Part<'b>],
    of: impl Fn(&Part<'b>) -> Mat<'b>,
) -> Vec<Packed<'a>> {
    let pack = |part| {
        let m: Mat = of(part);
        let (head, tail) = std::mem::take(&mut buffer).split_at_mut(lane.room(m.rows(), m.cols()));
        buffer = tail;
        Packed::new(head, m, lane)
    };
    parts.iter().map(pack).collect()
}

/// Scores `columns` of a tile whose rows are `n` long.
fn part_of(scores: &[f32], n: usize, rows: usize, columns: Range<usize>) -> Mat<'_> {
    Mat::strided(Elems::F32(&scores[columns.start..]), rows, columns.len(), n)
}

/// Where each part's tokens lie in the whole sequence.
fn ranges(parts: &[Part]) -> Vec<Range<usize>> {
    let mut end = 0;
    parts
        .iter()
        .map(|p| {
            let start = end;
            end += p.q.dim(1);
            start..end
        })
        .collect()
}

pub(super) fn forward(
    out: &mut [Tensor],
    lse: &mut Tensor,
    parts: &[Part],
    Heads { count: heads, scale, compute }: Heads,
    mask: Mask,
) {
    let lane = Lane::of(compute);
    let (b, n, d) = (lse.dim(0), lse.dim(2), parts[0].q.dim(2) / heads);
    let at = ranges(parts);
    let out: Vec<Shared> = out.iter_mut().map(|t| Shared::new(t.host_mut())).collect();
    let lse = Shared::new(lse.host_mut());
    // A sequence is divided among threads only where there are too few heads: every share packs all keys.
    let shares = (2 * workers()).div_ceil(b * heads).clamp(1, n.div_ceil(96));
    (0..b * heads * shares).into_par_iter().with_min_len(at_least(1)).for_each(|task| {
        let (bh, share) = (task / shares, task % shares);
        let (b, h) = (bh / heads, bh % heads);
        let keys: usize = at.iter().map(|r| lane.room(d, r.len())).sum();
        let values: usize = at.iter().map(|r| lane.room(r.len(), d)).sum();
        let rows = tile_rows(n);
        scratch(keys + values + rows * n, |buffer| {
            let [keys, values, scores] = cut(buffer, [keys, values, rows * n]);
            let keys = pack_parts(keys, lane, parts, |p| Head::of(p.k, b, h, heads).mat().t());
            let values = pack_parts(values, lane, parts, |p| Head::of(p.v, b, h, heads).mat());
            for (p, part) in parts.iter().enumerate() {
                let q = Head::of(part.q, b, h, heads);
                let to = HeadOut::of(out[p], part.q, b, h, heads);
                let own = share * q.tokens / shares..(share + 1) * q.tokens / shares;
                for first in own.clone().step_by(rows) {
                    let rows = rows.min(own.end - first);
                    // A causal tile sees no key beyond its last query.
                    let seen = if mask.causal { first + rows } else { n };
                    for (keys, at) in keys.iter().zip(&at) {
                        let to = (scores[at.start..].as_mut_ptr(), n);
                        // SAFETY: the columns lie inside the rows of `scores`.
                        unsafe {
                            keys.multiply(q.rows(first..first + rows), at.len().min(seen - at.start), to, scale, false)
                        };
                    }
                    for i in 0..rows {
                        let row = &mut scores[i * n..][..seen];
                        if let Some(bias) = mask.bias {
                            let bias = &bias.host()[(h * n + first + i) * n..][..seen];
                            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                        }
                        if mask.causal {
                            row[first + i + 1..].fill(f32::NEG_INFINITY);
                        }
                        let (max, total) = softmax(row);
                        // SAFETY: this sample, head and query are this task's.
                        let lse = unsafe { lse.slice(bh * n + at[p].start + first + i, 1) };
                        lse[0] = max + math::ln(total);
                        scores_total(row, 1.0 / total);
                    }
                    for (p, (values, at)) in values.iter().zip(&at).enumerate() {
                        let scores = part_of(scores, n, rows, at.start..at.end.min(seen));
                        // SAFETY: the head's columns of these queries are this task's.
                        unsafe { values.multiply(scores, d, to.to(first), 1.0, p > 0) };
                    }
                }
            }
        });
    });
}

wide! {
    /// `e^(s − max)` of every score; returns the largest score and the sum.
    pub(in crate::ops) fn softmax(row: &mut [f32]) -> (f32, f32) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (lines, rest) = row.as_chunks::<16>();
        for line in lines {
            lanes.iter_mut().zip(line).for_each(|(l, s)| *l = if *s > *l { *s } else { *l });
        }
        let max = lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|s| *s = math::exp(*s - max));
        (max, sum(row, |v| v))
    }
}

wide! {
    /// Every score times `inverse`.
    pub(in crate::ops) fn scores_total(row: &mut [f32], inverse: f32) {
        row.iter_mut().for_each(|s| *s *= inverse);
    }
}

wide! {
    /// `e^(s − lse)` of every score.
    fn weights(row: &mut [f32], lse: f32) {
        row.iter_mut().for_each(|s| *s = math::exp(*s - lse));
    }
}

wide! {
    /// `ds = p·(dp − delta)`, in place of `dp`.
    fn score_grads(dp: &mut [f32], p: &[f32], delta: f32) {
        dp.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - delta));
    }
}

pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    Heads { count: heads, scale, compute }: Heads,
) {
    let lane = Lane::of(compute);
    let (b, n, d) = (lse.dim(0), lse.dim(2), parts[0].q.dim(2) / heads);
    let at = ranges(parts);
    let shared: Vec<(Option<Shared>, Shared, Shared)> = grads
        .iter_mut()
        .map(|g| {
            let q = g.q.as_mut().map(|t| Shared::new(t.host_mut()));
            (q, Shared::new(g.k.host_mut()), Shared::new(g.v.host_mut()))
        })
        .collect();
    (0..b * heads).into_par_iter().with_min_len(at_least(1)).for_each(|bh| {
        let (b, h) = (bh / heads, bh % heads);
        let lse = &lse.host()[bh * n..][..n];
        let rows = tile_rows(2 * n);
        let across: usize = at.iter().map(|r| lane.room(d, r.len())).sum();
        let along: usize = at.iter().map(|r| lane.room(r.len(), d)).sum();
        let (tile, packed) = (rows * n, lane.room(rows, d));
        scratch(2 * across + along + 2 * tile + 2 * packed, |buffer| {
            let [keys_across, values_across, keys, p, dp, queries, douts] =
                cut(buffer, [across, across, along, tile, tile, packed, packed]);
            let keys_across = pack_parts(keys_across, lane, parts, |p| Head::of(p.k, b, h, heads).mat().t());
            let values_across = pack_parts(values_across, lane, parts, |p| Head::of(p.v, b, h, heads).mat().t());
            let keys = pack_parts(keys, lane, parts, |p| Head::of(p.k, b, h, heads).mat());
            let mut add = false;
            for (part, query) in parts.iter().enumerate() {
                let (Some(OutputGrad { out, dout }), Some(dq)) = (outputs[part], shared[part].0) else { continue };
                let [q, out, dout] = [query.q, out, dout].map(|t| Head::of(t, b, h, heads));
                let dq = HeadOut::of(dq, query.q, b, h, heads);
                for first in (0..q.tokens).step_by(rows) {
                    let rows = rows.min(q.tokens - first);
                    let [q_rows, dout_rows] = [q, dout].map(|t| t.rows(first..first + rows));
                    for ((keys, values), at) in keys_across.iter().zip(&values_across).zip(&at) {
                        // SAFETY: the columns lie inside the rows of `p` and `dp`.
                        unsafe {
                            keys.multiply(q_rows, at.len(), (p[at.start..].as_mut_ptr(), n), scale, false);
                            values.multiply(dout_rows, at.len(), (dp[at.start..].as_mut_ptr(), n), 1.0, false);
                        }
                    }
                    for i in 0..rows {
                        let (p, dp) = (&mut p[i * n..][..n], &mut dp[i * n..][..n]);
                        weights(p, lse[at[part].start + first + i]);
                        let delta = dot(out.token(first + i), dout.token(first + i));
                        score_grads(dp, p, delta);
                    }
                    let [queries, douts] = [(&mut *queries, q_rows), (&mut *douts, dout_rows)]
                        .map(|(buffer, m)| Packed::new(&mut buffer[..lane.room(rows, d)], m, lane));
                    for (i, at) in at.iter().enumerate() {
                        let [p, dp] = [&*p, &*dp].map(|scores| part_of(scores, n, rows, at.clone()));
                        let dk = HeadOut::of(shared[i].1, parts[i].k, b, h, heads);
                        let dv = HeadOut::of(shared[i].2, parts[i].v, b, h, heads);
                        // SAFETY: this sample's head of every gradient is this task's.
                        unsafe {
                            douts.multiply(p.t(), d, dv.to(0), 1.0, add);
                            queries.multiply(dp.t(), d, dk.to(0), scale, add);
                            keys[i].multiply(dp, d, dq.to(first), scale, i > 0);
                        }
                    }
                    add = true;
                }
            }
            if !add {
                // Nothing read any result.
                for (i, part) in parts.iter().enumerate() {
                    for grad in [shared[i].1, shared[i].2] {
                        let grad = HeadOut::of(grad, part.k, b, h, heads);
                        // SAFETY: this sample's head of every gradient is this task's.
                        (0..part.k.dim(1)).for_each(|t| unsafe { grad.token(t) }.fill(0.0));
                    }
                }
            }
        });
    });
}
