use rayon::prelude::*;

use super::{EPS, Part};
use crate::device::{Tensor, Weight};
use crate::ops::cpu::rows_per_task;
use crate::ops::rms_norm;

pub(super) fn split_into(out: &mut Tensor, x: &Tensor, part: Part, norm: Option<&Weight>) {
    let (heads, total, d) = (out.dim(1), out.dim(2), out.dim(3));
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

pub(super) fn merge(x: &Tensor, part: Part) -> Tensor {
    gather(x, part, |_, out, x| out.copy_from_slice(x))
}

pub(super) fn backward(dout: &Tensor, part: Part, x: &Tensor, norm: Option<&Weight>) -> Tensor {
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
    tokens.with_min_len(rows_per_task(width)).for_each(|(token, row)| {
        let (b, i) = (token / part.len, token % part.len);
        for (h, head) in row.chunks_exact_mut(d).enumerate() {
            let from = ((b * heads + h) * total + part.offset + i) * d;
            f(token * width + h * d, head, &x.data()[from..from + d]);
        }
    });
    out
}
