//! Rearranges the right operand into panels that the inner loop reads front to back.
//!
//! A panel holds [`NR`] columns. In single precision, step `k` of a panel is the `NR` values of row `k`; in
//! bf16 it is `NR` pairs (rows `2k` and `2k+1`), so that both are "one 32-bit lane per column and step".
//! Columns beyond the matrix and the odd last row of bf16 pairs are zero.

use half::bf16;

use super::Mat;
use crate::device::Elems;

/// Columns per panel: two 512-bit registers.
pub(super) const NR: usize = 32;

/// Packs rows `k0..k1` of columns `j0..j1` in single precision. `out` holds whole panels, one after another.
pub(super) fn pack_f32(out: &mut [f32], b: Mat, k0: usize, k1: usize, j0: usize, j1: usize) {
    let depth = k1 - k0;
    for (p, panel) in out.chunks_exact_mut((depth * NR).max(1)).enumerate() {
        let (from, to) = (j0 + p * NR, (j0 + (p + 1) * NR).min(j1));
        if from >= to {
            break;
        }
        let width = to - from;
        match b.data {
            Elems::F32(x) if b.col_stride == 1 => {
                for (row, k) in panel.chunks_exact_mut(NR).zip(k0..k1) {
                    row[..width].copy_from_slice(&x[k * b.row_stride + from..][..width]);
                    row[width..].fill(0.0);
                }
            }
            Elems::F32(x) if b.row_stride == 1 => {
                transpose(panel, NR, width, depth, |j| &x[(from + j) * b.col_stride + k0..][..depth]);
            }
            _ => {
                for (row, k) in panel.chunks_exact_mut(NR).zip(k0..k1) {
                    for (j, v) in row.iter_mut().enumerate() {
                        *v = if j < width { b.data.get(k * b.row_stride + (from + j) * b.col_stride) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Packs pairs of rows `2·p0..2·p1` of columns `j0..j1` of a bf16 matrix.
pub(super) fn pack_bf16(out: &mut [u32], b: Mat, x: &[bf16], p0: usize, p1: usize, j0: usize, j1: usize) {
    let depth = p1 - p0;
    let bits = |k: usize, j: usize| {
        if k < b.rows { u32::from(x[k * b.row_stride + j * b.col_stride].to_bits()) } else { 0 }
    };
    for (p, panel) in out.chunks_exact_mut((depth * NR).max(1)).enumerate() {
        let (from, to) = (j0 + p * NR, (j0 + (p + 1) * NR).min(j1));
        if from >= to {
            break;
        }
        let width = to - from;
        if b.row_stride == 1 && 2 * p1 <= b.rows {
            let row = |j: usize| {
                let start = (from + j) * b.col_stride + 2 * p0;
                bytemuck::try_cast_slice::<bf16, u32>(&x[start..start + 2 * depth])
            };
            if (0..width).all(|j| row(j).is_ok()) {
                transpose(panel, NR, width, depth, |j| row(j).expect("checked above"));
                continue;
            }
        }
        for (lanes, pair) in panel.chunks_exact_mut(NR).zip(p0..p1) {
            for (j, v) in lanes.iter_mut().enumerate() {
                *v = if j < width { bits(2 * pair, from + j) | bits(2 * pair + 1, from + j) << 16 } else { 0 };
            }
        }
    }
}

/// `out[k·stride + j] = line(j)[k]` for `width` lines of `depth` values; the other columns become zero.
fn transpose<'a, T: Copy + Default + 'a>(
    out: &mut [T],
    stride: usize,
    width: usize,
    depth: usize,
    line: impl Fn(usize) -> &'a [T],
) {
    /// Lines handled together: their next values share few cache lines of `out`.
    const BLOCK: usize = 8;
    let mut j = 0;
    while j + BLOCK <= width {
        let lines: [&[T]; BLOCK] = std::array::from_fn(|i| &line(j + i)[..depth]);
        for k in 0..depth {
            let dst = &mut out[k * stride + j..][..BLOCK];
            for (d, l) in dst.iter_mut().zip(&lines) {
                *d = l[k];
            }
        }
        j += BLOCK;
    }
    for j in j..stride {
        if j < width {
            for (k, v) in line(j)[..depth].iter().enumerate() {
                out[k * stride + j] = *v;
            }
        } else {
            for k in 0..depth {
                out[k * stride + j] = T::default();
            }
        }
    }
}
