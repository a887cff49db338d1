use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::{DType, Tensor};
use crate::ops::cpu::at_least;

/// Bytes per task.
const GRAIN: usize = 1 << 17;

pub(super) fn gather(out: &mut Tensor, x: &Tensor, rows: &[usize]) {
    let inner = x.dtype().bytes(x.len() / x.dim(0).max(1)).max(1);
    let x = x.stored_bytes();
    let lines = out.host_bytes_mut().par_chunks_exact_mut(inner).zip(rows);
    lines
        .with_min_len(at_least(GRAIN / inner + 1))
        .for_each(|(out, row)| out.copy_from_slice(&x[row * inner..][..inner]));
}

pub(super) fn flat_into(out: &mut Tensor, first: usize, x: &Tensor) {
    let x_bytes = x.stored_bytes();
    let out = &mut out.host_bytes_mut()[x.dtype().bytes(first)..][..x_bytes.len()];
    let chunks = out.par_chunks_mut(GRAIN).zip(x_bytes.par_chunks(GRAIN));
    chunks.with_min_len(at_least(1)).for_each(|(out, x)| out.copy_from_slice(x));
}

pub(super) fn block_into(out: &mut Tensor, token: usize, column: usize, x: &Tensor) {
    let dtype = x.dtype();
    let [d, column, w] = [out.dim(2), column, x.dim(2)].map(|n| dtype.bytes(n));
    let (n, m) = (out.dim(1), x.dim(1));
    let samples =
        out.host_bytes_mut().chunks_exact_mut((n * d).max(1)).zip(x.stored_bytes().chunks_exact((m * w).max(1)));
    for (sample, x) in samples {
        let rows = sample[token * d..].chunks_exact_mut(d).zip(x.chunks_exact(w));
        rows.for_each(|(row, x)| row[column..][..w].copy_from_slice(x));
    }
}

pub(super) fn columns(out: &mut Tensor, x: &Tensor, first: usize) {
    let dtype = x.dtype();
    let [width, from, first] = [out.width(), x.width(), first].map(|n| dtype.bytes(n));
    let rows = out.host_bytes_mut().chunks_exact_mut(width.max(1)).zip(x.stored_bytes().chunks_exact(from.max(1)));
    rows.for_each(|(out, x)| out.copy_from_slice(&x[first..][..width]));
}

pub(super) fn cast(out: &mut Tensor, x: &Tensor) {
    let (dtype, x) = (out.dtype(), x.elems().to_f32());
    let out = out.host_bytes_mut();
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut::<_, f32>(out).copy_from_slice(&x),
        DType::F16 => bytemuck::cast_slice_mut::<_, f16>(out).convert_from_f32_slice(&x),
        DType::Bf16 => bytemuck::cast_slice_mut::<_, bf16>(out).convert_from_f32_slice(&x),
        DType::U8 | DType::Blocks(_) => panic!("nothing is rounded to {dtype:?}"),
    }
}
