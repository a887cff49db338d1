//! Rearranges the right operand into panels that the inner loop reads front to back.
//!
//! A panel holds [`NR`] columns. In single precision, step `k` of a panel is the `NR` values of row `k`; in
//! bf16 it is `NR` pairs (rows `2k` and `2k+1`), so that both are "one 32-bit lane per column and step".
//! Columns beyond the matrix and the odd last row of bf16 pairs are zero.

use half::bf16;

use super::Mat;
use super::detect::has_avx512;
use crate::device::Elems;

/// Columns per panel: two 512-bit registers.
pub(super) const NR: usize = 32;
/// Side of the squares that are transposed in registers.
const SQUARE: usize = 16;

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
                let line = |j: usize| bytemuck::cast_slice(&x[(from + j) * b.col_stride + k0..][..depth]);
                transpose(bytemuck::cast_slice_mut(panel), width, depth, line);
            }
            half if b.col_stride == 1 => {
                for (row, k) in panel.chunks_exact_mut(NR).zip(k0..k1) {
                    let start = k * b.row_stride + from;
                    half.slice(start..start + width).widen_into(&mut row[..width]);
                    row[width..].fill(0.0);
                }
            }
            half if b.row_stride == 1 => {
                let mut lines = vec![0.0f32; width * depth];
                for (j, line) in lines.chunks_exact_mut(depth.max(1)).enumerate() {
                    let start = (from + j) * b.col_stride + k0;
                    half.slice(start..start + depth).widen_into(line);
                }
                let line = |j: usize| bytemuck::cast_slice(&lines[j * depth..][..depth]);
                transpose(bytemuck::cast_slice_mut(panel), width, depth, line);
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
                transpose(panel, width, depth, |j| row(j).expect("checked above"));
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

/// `out[k·NR + j] = line(j)[k]` for `width` lines of `depth` values; the other columns become zero.
fn transpose<'a>(out: &mut [u32], width: usize, depth: usize, line: impl Fn(usize) -> &'a [u32]) {
    /// Lines handled together elsewhere: their next values share few cache lines of `out`.
    const BLOCK: usize = 8;
    // Squares of 16 x 16 in registers where there are such; what is left, one by one.
    let (wide, deep) = if has_avx512() { (width / SQUARE * SQUARE, depth / SQUARE * SQUARE) } else { (0, 0) };
    #[cfg(target_arch = "x86_64")]
    for j in (0..wide).step_by(SQUARE) {
        let lines: [&[u32]; SQUARE] = std::array::from_fn(|i| &line(j + i)[..depth]);
        for k in (0..deep).step_by(SQUARE) {
            let out = &mut out[k * NR + j..][..(SQUARE - 1) * NR + SQUARE];
            // SAFETY: the feature is there; 16 values from `k` on lie inside every line, 16 rows of 16 inside `out`.
            unsafe { avx512::transpose(out.as_mut_ptr(), lines.map(|l| l.as_ptr().wrapping_add(k))) };
        }
    }
    let mut j = 0;
    while j + BLOCK <= width {
        let lines: [&[u32]; BLOCK] = std::array::from_fn(|i| &line(j + i)[..depth]);
        for k in if j < wide { deep } else { 0 }..depth {
            let out = &mut out[k * NR + j..][..BLOCK];
            for (v, l) in out.iter_mut().zip(&lines) {
                *v = l[k];
            }
        }
        j += BLOCK;
    }
    for j in j..NR {
        let column = out.iter_mut().skip(j).step_by(NR).take(depth);
        if j < width {
            column.zip(line(j)).for_each(|(v, l)| *v = *l);
        } else {
            column.for_each(|v| *v = 0);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{NR, SQUARE};

    /// How far ahead a line is fetched: many short lines at once are more than the processor follows by itself.
    const AHEAD: usize = 8 * SQUARE;

    /// Writes the transposed square of 16 lines of 16 values to rows `NR` apart.
    ///
    /// # Safety
    /// AVX-512F must be there, and the memory behind the pointers.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(out: *mut u32, lines: [*const u32; SQUARE]) {
        let mut r = [_mm512_setzero_si512(); SQUARE];
        for (r, line) in r.iter_mut().zip(lines) {
            // SAFETY: promised by the caller; a prefetch may go anywhere.
            unsafe {
                *r = _mm512_loadu_si512(line.cast());
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD).cast());
            }
        }
        // Pairs of lines, then fours: each register holds, in its four quarters, columns c, c+4, c+8, c+12 of 4 lines.
        let mut fours = [r[0]; SQUARE];
        for i in (0..SQUARE).step_by(4) {
            let (a, b) = (_mm512_unpacklo_epi32(r[i], r[i + 1]), _mm512_unpackhi_epi32(r[i], r[i + 1]));
            let (c, d) = (_mm512_unpacklo_epi32(r[i + 2], r[i + 3]), _mm512_unpackhi_epi32(r[i + 2], r[i + 3]));
            fours[i] = _mm512_unpacklo_epi64(a, c);
            fours[i + 1] = _mm512_unpackhi_epi64(a, c);
            fours[i + 2] = _mm512_unpacklo_epi64(b, d);
            fours[i + 3] = _mm512_unpackhi_epi64(b, d);
        }
        // Quarters of the four groups of lines come together: a 4 x 4 transpose of quarters.
        for c in 0..4 {
            let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
            let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
            let (low2, high2) = (_mm512_shuffle_i32x4::<0x44>(d, e), _mm512_shuffle_i32x4::<0xEE>(d, e));
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(low, low2),
                _mm512_shuffle_i32x4::<0xDD>(low, low2),
                _mm512_shuffle_i32x4::<0x88>(high, high2),
                _mm512_shuffle_i32x4::<0xDD>(high, high2),
            ];
            for (quarter, column) in columns.into_iter().enumerate() {
                // SAFETY: promised by the caller.
                unsafe { _mm512_storeu_si512(out.add((4 * quarter + c) * NR).cast(), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_panels_hold_every_value_once_and_zeros_beyond_for_odd_sizes() {
        for (width, depth) in [(32, 384), (16, 16), (31, 17), (1, 1), (5, 40), (20, 15), (32, 33)] {
            let x: Vec<u32> = (1..=(width * depth) as u32).collect();
            let mut out = vec![u32::MAX; NR * depth];
            transpose(&mut out, width, depth, |j| &x[j * depth..][..depth]);
            for (at, v) in out.iter().enumerate() {
                let (k, j) = (at / NR, at % NR);
                assert_eq!(*v, if j < width { x[j * depth + k] } else { 0 }, "{width}x{depth} at {k},{j}");
            }
        }
    }
}
