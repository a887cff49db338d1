//! Rearranges the right operand into panels that the inner loop reads front to back.
//!
//! A panel holds [`NR`] columns. In single precision, step `k` of a panel is the `NR` values of row `k`; in
//! bf16 it is `NR` pairs (rows `2k` and `2k+1`), so that both are "one 32-bit lane per column and step".
//! Columns beyond the matrix and the odd last row of bf16 pairs are zero.

use std::ops::Range;

use half::bf16;

use super::Mat;
use super::detect::{has_avx2, has_avx512};
use super::tile::NR;
use crate::device::Elems;

/// Packs rows `k` of columns `j` in single precision. `out` holds whole panels, one after another.
pub(in crate::ops) fn pack_f32(out: &mut [f32], b: Mat, k: Range<usize>, j: Range<usize>) {
    let depth = k.len();
    for (from, panel) in j.clone().step_by(NR).zip(out.chunks_exact_mut((depth * NR).max(1))) {
        let width = NR.min(j.end - from);
        match b.data {
            Elems::F32(x) if b.col_stride == 1 => {
                for (row, k) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(k.clone()) {
                    row[..width].copy_from_slice(&x[k * b.row_stride + from..][..width]);
                    row[width..].fill(0.0);
                }
            }
            Elems::F32(x) if b.row_stride == 1 => {
                let line = |j: usize| bytemuck::cast_slice(&x[(from + j) * b.col_stride + k.start..][..depth]);
                transpose(bytemuck::cast_slice_mut(panel), width, depth, line);
            }
            half if b.col_stride == 1 => {
                for (row, k) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(k.clone()) {
                    let start = k * b.row_stride + from;
                    half.slice(start..start + width).widen_into(&mut row[..width]);
                    row[width..].fill(0.0);
                }
            }
            half if b.row_stride == 1 => {
                /// Steps that are widened together, on the stack.
                const WIDENED: usize = 128;
                let mut lines = [[0.0f32; WIDENED]; NR];
                for first in (0..depth).step_by(WIDENED) {
                    let depth = WIDENED.min(depth - first);
                    for (j, line) in lines.iter_mut().enumerate().take(width) {
                        let start = (from + j) * b.col_stride + k.start + first;
                        half.slice(start..start + depth).widen_into(&mut line[..depth]);
                    }
                    let line = |j: usize| bytemuck::cast_slice(&lines[j][..depth]);
                    let panel = &mut panel[first * NR..][..depth * NR];
                    transpose(bytemuck::cast_slice_mut(panel), width, depth, line);
                }
            }
            _ => {
                for (row, k) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(k.clone()) {
                    for (j, v) in row.iter_mut().enumerate() {
                        *v = if j < width { b.data.get(k * b.row_stride + (from + j) * b.col_stride) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Packs pairs of rows `2·pairs` of columns `j` of a bf16 matrix.
pub(super) fn pack_bf16(out: &mut [u32], b: Mat, x: &[bf16], pairs: Range<usize>, j: Range<usize>) {
    let depth = pairs.len();
    let bits = |k: usize, j: usize| {
        if k < b.rows { u32::from(x[k * b.row_stride + j * b.col_stride].to_bits()) } else { 0 }
    };
    for (from, panel) in j.clone().step_by(NR).zip(out.chunks_exact_mut((depth * NR).max(1))) {
        let width = NR.min(j.end - from);
        if b.row_stride == 1 && 2 * pairs.end <= b.rows {
            let row = |j: usize| {
                let start = (from + j) * b.col_stride + 2 * pairs.start;
                bytemuck::try_cast_slice::<bf16, u32>(&x[start..start + 2 * depth])
            };
            if (0..width).all(|j| row(j).is_ok()) {
                transpose(panel, width, depth, |j| row(j).expect("checked above"));
                continue;
            }
        }
        for (lanes, pair) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(pairs.clone()) {
            for (j, v) in lanes.iter_mut().enumerate() {
                *v = if j < width { bits(2 * pair, from + j) | bits(2 * pair + 1, from + j) << 16 } else { 0 };
            }
        }
    }
}

/// `out[k·NR + j] = line(j)[k]` for `width` lines of `depth` values; the other columns become zero.
fn transpose<'a>(out: &mut [u32], width: usize, depth: usize, line: impl Fn(usize) -> &'a [u32]) {
    // Squares in registers where there are such; what is left, one by one.
    let mut deep = 0;
    #[cfg(target_arch = "x86_64")]
    if width == NR {
        let lines: [&[u32]; NR] = std::array::from_fn(|j| &line(j)[..depth]);
        if has_avx512() {
            deep = depth / 16 * 16;
            for k in (0..deep).step_by(16) {
                let out = &mut out[k * NR..][..16 * NR];
                // SAFETY: the feature is there; 16 values from `k` on lie inside every line, 16 rows of 16 inside `out`.
                unsafe { avx512::transpose(out.as_mut_ptr(), lines.map(|l| l.as_ptr().wrapping_add(k))) };
            }
        } else if has_avx2() {
            deep = depth / 8 * 8;
            let apart = NR * (lines[1].as_ptr() as usize).wrapping_sub(lines[0].as_ptr() as usize);
            for k in (0..deep).step_by(8) {
                let out = &mut out[k * NR..][..8 * NR];
                for half in [0, 8] {
                    let lines: [*const u32; 8] = std::array::from_fn(|i| lines[half + i].as_ptr().wrapping_add(k));
                    // The same place in the panel that comes next.
                    let next = lines.map(|l| l.wrapping_byte_add(apart));
                    // SAFETY: as above, with 8.
                    unsafe { avx2::transpose(out.as_mut_ptr().add(half), lines, next) };
                }
            }
        }
    }
    let rows = out[deep * NR..].as_chunks_mut::<NR>().0;
    for j in 0..NR {
        if j < width {
            rows.iter_mut().zip(&line(j)[deep..depth]).for_each(|(row, v)| row[j] = *v);
        } else {
            rows.iter_mut().take(depth - deep).for_each(|row| row[j] = 0);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::NR;

    /// Writes the transposed square of 8 lines of 8 values to rows [`NR`] apart, and fetches what `next` points to.
    ///
    /// # Safety
    /// AVX2 must be there, and the memory behind the pointers.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose(out: *mut u32, lines: [*const u32; 8], next: [*const u32; 8]) {
        let mut r = [_mm256_setzero_ps(); 8];
        for ((r, line), next) in r.iter_mut().zip(lines).zip(next) {
            // SAFETY: promised by the caller; a prefetch may go anywhere.
            unsafe {
                *r = _mm256_loadu_ps(line.cast());
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
            }
        }
        // Pairs of lines, then fours: each register holds, in its halves, columns c and c+4 of 4 lines.
        let mut fours = [r[0]; 8];
        for i in [0, 4] {
            let (a, b) = (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
            let (c, d) = (_mm256_unpacklo_ps(r[i + 2], r[i + 3]), _mm256_unpackhi_ps(r[i + 2], r[i + 3]));
            fours[i] = _mm256_shuffle_ps::<0x44>(a, c);
            fours[i + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
            fours[i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
            fours[i + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
        }
        for c in 0..4 {
            let (low, high) = (fours[c], fours[4 + c]);
            // SAFETY: promised by the caller.
            unsafe {
                _mm256_storeu_ps(out.add(c * NR).cast(), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(out.add((c + 4) * NR).cast(), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::NR;

    /// How far ahead a line is fetched: many short lines at once are more than the processor follows by itself.
    const AHEAD: usize = 8 * NR;

    /// Writes the transposed square of 16 lines of 16 values to rows [`NR`] apart.
    ///
    /// # Safety
    /// AVX-512F must be there, and the memory behind the pointers.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(out: *mut u32, lines: [*const u32; NR]) {
        let mut r = [_mm512_setzero_si512(); NR];
        for (r, line) in r.iter_mut().zip(lines) {
            // SAFETY: promised by the caller; a prefetch may go anywhere.
            unsafe {
                *r = _mm512_loadu_si512(line.cast());
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD).cast());
            }
        }
        // Pairs of lines, then fours: each register holds, in its four quarters, columns c, c+4, c+8, c+12 of 4 lines.
        let mut fours = [r[0]; NR];
        for i in (0..NR).step_by(4) {
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
        for (width, depth) in [(16, 384), (16, 16), (15, 17), (1, 1), (5, 40), (16, 15), (16, 33), (16, 9)] {
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
