//! Between token-major projections `[b, n, heads·d]` and head-major attention operands `[b, heads, total, d]`,
//! with the q/k RMS norm of SD3.5 on the way. Text and image tokens go into one joint operand at different offsets.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::{Tensor, Weight};
use crate::ops::rms_norm;

/// As in diffusers' `Attention(qk_norm="rms_norm")`.
pub const EPS: f32 = 1e-6;

/// Which part of a joint operand a projection fills.
#[derive(Clone, Copy)]
pub struct Part {
    /// First token.
    pub offset: usize,
    /// Number of tokens.
    pub len: usize,
}

/// Writes tokens `part` of `out` `[b, heads, total, d]` from `x` `[b, part.len, heads·d]`, each head RMS-normalised
/// with `norm` `[d]` if there is one. Other tokens of `out` stay as they are.
pub fn split_into(out: &mut Tensor, x: &Tensor, part: Part, norm: Option<&Weight>) {
    let (heads, total, d) = (out.dim(1), out.dim(2), out.dim(3));
    assert_eq!(x.shape(), [out.dim(0), part.len, heads * d], "heads: into {:?}", out.shape());
    let norm = norm.map(Weight::to_f32);
    out.data_mut().par_chunks_exact_mut(total * d).enumerate().for_each(|(bh, out)| {
        let (b, h) = (bh / heads, bh % heads);
        for (i, row) in out[part.offset * d..(part.offset + part.len) * d].chunks_exact_mut(d).enumerate() {
            let x = &x.data()[((b * part.len + i) * heads + h) * d..][..d];
            match &norm {
                Some(w) => rms_norm::forward_row(row, x, w, EPS),
                None => row.copy_from_slice(x),
            }
        }
    });
}

/// `x` `[b, n, heads·d]` as `[b, heads, n, d]`.
pub fn split(x: &Tensor, heads: usize) -> Tensor {
    let (b, n, d) = (x.dim(0), x.dim(1), x.dim(2) / heads);
    let mut out = Tensor::scratch(&[b, heads, n, d]);
    split_into(&mut out, x, Part { offset: 0, len: n }, None);
    out
}

/// Tokens `part` of `x` `[b, heads, total, d]` as `[b, part.len, heads·d]`.
pub fn merge(x: &Tensor, part: Part) -> Tensor {
    gather(x, part, |_, out, x| out.copy_from_slice(x))
}

/// The gradient of [`split_into`]: from `dout` `[b, heads, total, d]` to `x` `[b, part.len, heads·d]`, which is
/// needed as it was given wherever there is a `norm`.
pub fn backward(dout: &Tensor, part: Part, x: &Tensor, norm: Option<&Weight>) -> Tensor {
    let Some(norm) = norm else { return merge(dout, part) };
    let norm = norm.to_f32();
    gather(dout, part, |at, dx, dy| rms_norm::backward_row(dx, dy, &x.data()[at..at + dx.len()], &norm, EPS))
}

/// Calls `f(position in the output, output row, input row)` for every head of every token of `part`.
fn gather(x: &Tensor, part: Part, f: impl Fn(usize, &mut [f32], &[f32]) + Sync) -> Tensor {
    let (b, heads, total, d) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let width = heads * d;
    let mut out = Tensor::scratch(&[b, part.len, width]);
    let tokens = out.data_mut().par_chunks_exact_mut(width).enumerate();
    tokens.with_min_len(super::rows_per_task(width)).for_each(|(token, row)| {
        let (b, i) = (token / part.len, token % part.len);
        for (h, head) in row.chunks_exact_mut(d).enumerate() {
            let from = ((b * heads + h) * total + part.offset + i) * d;
            f(token * width + h * d, head, &x.data()[from..from + d]);
        }
    });
    out
}
