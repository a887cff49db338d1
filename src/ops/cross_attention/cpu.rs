use rayon::prelude::*;

use super::Heads;
use crate::device::{Elems, Tensor, workers};
use crate::ops::attention::{Head, HeadOut, cut, scores_total, softmax, tile_rows};
use crate::ops::cpu::gemm::{Lane, Mat, Packed};
use crate::ops::cpu::{Shared, at_least, scratch};
use crate::ops::math::{self, wide};

pub(super) fn forward(
    out: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    Heads { count: heads, scale, compute }: Heads,
    sees: Option<&Tensor>,
) {
    let lane = Lane::of(compute);
    let (b, m, n, d) = (q.dim(0), q.dim(1), k.dim(1), q.dim(2) / heads);
    let to = Shared::new(out.host_mut());
    let blocked: Option<Vec<f32>> = sees.map(|s| blocked(s.host(), [b, n, m]));
    let rows = tile_rows(n);
    // Keys and values are packed by every task of a head.
    let shares = (2 * workers()).div_ceil(b * heads).clamp(1, m.div_ceil(rows));
    (0..b * heads * shares).into_par_iter().with_min_len(at_least(1)).for_each(|task| {
        let (bh, share) = (task / shares, task % shares);
        let (b, h) = (bh / heads, bh % heads);
        scratch(lane.room(d, n) + lane.room(n, d) + rows * n, |buffer| {
            let [keys, values, scores] = cut(buffer, [lane.room(d, n), lane.room(n, d), rows * n]);
            let keys = Packed::new(keys, Head::of(k, b, h, heads).mat().t(), lane);
            let values = Packed::new(values, Head::of(v, b, h, heads).mat(), lane);
            let (q, to) = (Head::of(q, b, h, heads), HeadOut::of(to, q, b, h, heads));
            let own = share * m / shares..(share + 1) * m / shares;
            for first in own.clone().step_by(rows) {
                let rows = rows.min(own.end - first);
                // SAFETY: the scores have as many rows of `n`.
                unsafe { keys.multiply(q.rows(first..first + rows), n, (scores.as_mut_ptr(), n), scale, false) };
                for (i, row) in scores.chunks_exact_mut(n).take(rows).enumerate() {
                    if let Some(blocked) = &blocked {
                        add(row, &blocked[(b * m + first + i) * n..][..n]);
                    }
                    let (_, total) = softmax(row);
                    scores_total(row, 1.0 / total);
                }
                let scores = Mat::strided(Elems::F32(scores), rows, n, n);
                // SAFETY: the head's columns of these queries are this task's.
                unsafe { values.multiply(scores, d, to.to(first), 1.0, false) };
            }
        });
    });
}

wide! {
    fn add(row: &mut [f32], blocked: &[f32]) {
        row.iter_mut().zip(blocked).for_each(|(s, b)| *s += b);
    }
}

/// What is added to each score, `[b, m, n]`: nothing, or minus infinity.
fn blocked(sees: &[f32], [b, n, m]: [usize; 3]) -> Vec<f32> {
    let mut blocked = vec![0.0; b * m * n];
    blocked.par_chunks_exact_mut(n).enumerate().with_min_len(at_least(8)).for_each(|(row, blocked)| {
        let column = sees[row / m * n * m..][..n * m].iter().skip(row % m).step_by(m);
        for (out, number) in blocked.iter_mut().zip(column) {
            *out = if math::sigmoid(*number) < 0.5 { f32::NEG_INFINITY } else { 0.0 };
        }
        if blocked.iter().all(|v| *v < 0.0) {
            blocked.fill(0.0);
        }
    });
    blocked
}
