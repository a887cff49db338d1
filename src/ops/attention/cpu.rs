//! Row tiles of queries against all keys: the scores of one tile stay in cache, the whole `n x n` matrix never exists.

use rayon::prelude::*;

use super::Mask;
use crate::device::Tensor;
use crate::ops::cpu::{dot, sum};
use crate::ops::math;
use crate::ops::cpu::gemm::{Epilogue, Mat, matmul_serial};

/// Queries per tile.
const TILE: usize = 128;

thread_local! {
    static SCRATCH: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Runs `f` with a scratch buffer of `len` floats of arbitrary content that stays with the thread.
fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = SCRATCH.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    SCRATCH.set(buffer);
    result
}

/// Returns `out` `[b, heads, n, d]` and `lse` `[b, heads, n]`.
pub(super) fn forward(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: Mask) -> (Tensor, Tensor) {
    let (b, heads, n, d) = (q.dim(0), q.dim(1), q.dim(2), q.dim(3));
    assert!(k.shape() == q.shape() && v.shape() == q.shape(), "attention: q {q:?}, k {k:?}, v {v:?}");
    let mut out = Tensor::scratch(q.shape());
    let mut lse = Tensor::scratch(&[b, heads, n]);
    let per_head = out.data_mut().par_chunks_exact_mut(n * d).zip(lse.data_mut().par_chunks_exact_mut(n));
    per_head.enumerate().for_each(|(bh, (out, lse))| {
        let head = bh * n * d..(bh + 1) * n * d;
        let (q, k, v) = (&q.data()[head.clone()], &k.data()[head.clone()], &v.data()[head]);
        let tiles = out.par_chunks_mut(TILE * d).zip(lse.par_chunks_mut(TILE)).enumerate();
        tiles.for_each(|(tile, (out, lse))| {
            let (first, rows) = (tile * TILE, lse.len());
            // A causal tile sees no key beyond its last query.
            let keys = if mask.causal { first + rows } else { n };
            with_scratch(rows * keys, |scores| {
                let queries = Mat::new(&q[first * d..(first + rows) * d], rows, d);
                let how = Epilogue { scale, ..Epilogue::default() };
                matmul_serial(scores, keys, queries, Mat::new(&k[..keys * d], keys, d).t(), how);
                for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                    if let Some(bias) = mask.bias {
                        let bias = &bias.data()[((bh % heads) * n + first + i) * n..][..keys];
                        row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                    }
                    if mask.causal {
                        row[first + i + 1..].fill(f32::NEG_INFINITY);
                    }
                    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    row.iter_mut().for_each(|s| *s = math::exp(*s - max));
                    let total = sum(row, |v| v);
                    lse[i] = max + total.ln();
                    let inverse = 1.0 / total;
                    row.iter_mut().for_each(|s| *s *= inverse);
                }
                let weights = Mat::new(scores, rows, keys);
                matmul_serial(out, d, weights, Mat::new(&v[..keys * d], keys, d), Epilogue::default());
            });
        });
    });
    (out, lse)
}

/// Returns `(dq, dk, dv)`; all operands `[b, heads, n, d]`.
pub(super) fn backward(
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    scale: f32,
) -> (Tensor, Tensor, Tensor) {
    let (n, d) = (q.dim(2), q.dim(3));
    let (mut dq, mut dk, mut dv) = (Tensor::scratch(q.shape()), Tensor::scratch(q.shape()), Tensor::scratch(q.shape()));
    let outputs = dq.data_mut().par_chunks_exact_mut(n * d);
    let outputs = outputs.zip(dk.data_mut().par_chunks_exact_mut(n * d)).zip(dv.data_mut().par_chunks_exact_mut(n * d));
    outputs.enumerate().for_each(|(bh, ((dq, dk), dv))| {
        let head = bh * n * d..(bh + 1) * n * d;
        let [q, k, v, out, dout] = [q, k, v, out, dout].map(|t| &t.data()[head.clone()]);
        let lse = &lse.data()[bh * n..(bh + 1) * n];
        for first in (0..n).step_by(TILE) {
            let rows = TILE.min(n - first);
            let tile = first * d..(first + rows) * d;
            with_scratch(2 * rows * n, |scratch| {
                let (p, dp) = scratch.split_at_mut(rows * n);
                let (queries, dout_tile) =
                    (Mat::new(&q[tile.clone()], rows, d), Mat::new(&dout[tile.clone()], rows, d));
                let (keys, values) = (Mat::new(k, n, d), Mat::new(v, n, d));
                matmul_serial(p, n, queries, keys.t(), Epilogue { scale, ..Epilogue::default() });
                matmul_serial(dp, n, dout_tile, values.t(), Epilogue::default());
                for (i, row) in p.chunks_exact_mut(n).enumerate() {
                    row.iter_mut().for_each(|s| *s = math::exp(*s - lse[first + i]));
                }
                let add = Epilogue { accumulate: first > 0, ..Epilogue::default() };
                matmul_serial(dv, d, Mat::new(p, rows, n).t(), dout_tile, add);
                for (i, (p, dp)) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)).enumerate() {
                    let row = (first + i) * d..(first + i + 1) * d;
                    let delta = dot(&out[row.clone()], &dout[row]);
                    dp.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - delta));
                }
                let ds = Mat::new(dp, rows, n);
                matmul_serial(&mut dq[tile], d, ds, keys, Epilogue { scale, ..Epilogue::default() });
                matmul_serial(dk, d, ds.t(), queries, Epilogue { scale, ..add });
            });
        }
    });
    (dq, dk, dv)
}
