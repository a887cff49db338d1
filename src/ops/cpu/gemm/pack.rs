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
use crate::ops::math::wide;

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

/// Packs pairs of rows `2·pairs` of columns `j` of a matrix in bf16, or in single precision that is rounded to it.
pub(super) fn pack_pairs(out: &mut [u32], b: Mat, pairs: Range<usize>, j: Range<usize>) {
    let depth = pairs.len();
    for (from, panel) in j.clone().step_by(NR).zip(out.chunks_exact_mut((depth * NR).max(1))) {
        let width = NR.min(j.end - from);
        let start = |j: usize| (from + j) * b.col_stride + 2 * pairs.start;
        match b.data {
            Elems::Bf16(x) if b.row_stride == 1 && 2 * pairs.end <= b.rows => {
                let row = |j: usize| bytemuck::try_cast_slice::<bf16, u32>(&x[start(j)..][..2 * depth]);
                if (0..width).all(|j| row(j).is_ok()) {
                    transpose(panel, width, depth, |j| row(j).expect("checked above"));
                    continue;
                }
            }
            Elems::F32(x) if b.row_stride == 1 => {
                /// Pairs that are rounded together, on the stack.
                const ROUNDED: usize = 64;
                let mut lines = [[0u32; ROUNDED]; NR];
                for first in (0..depth).step_by(ROUNDED) {
                    let depth = ROUNDED.min(depth - first);
                    let values = (2 * depth).min(b.rows - 2 * (pairs.start + first));
                    for (j, line) in lines.iter_mut().enumerate().take(width) {
                        line[depth - 1] = 0;
                        narrow(bytemuck::cast_slice_mut(line), &x[start(j) + 2 * first..][..values]);
                    }
                    transpose(&mut panel[first * NR..][..depth * NR], width, depth, |j| &lines[j][..depth]);
                }
                continue;
            }
            Elems::F32(x) if b.col_stride == 1 => {
                for (lanes, pair) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(pairs.clone()) {
                    let row = |k: usize| {
                        if k < b.rows { &x[k * b.row_stride + from..][..width] } else { &[0.0; NR][..width] }
                    };
                    zip_rounded(&mut lanes[..width], row(2 * pair), row(2 * pair + 1));
                    lanes[width..].fill(0);
                }
                continue;
            }
            _ => {}
        }
        for (lanes, pair) in panel.as_chunks_mut::<NR>().0.iter_mut().zip(pairs.clone()) {
            for (j, v) in lanes.iter_mut().enumerate() {
                *v = if j < width { b.pair([2 * pair, from + j], [2 * pair + 1, from + j]) } else { 0 };
            }
        }
    }
}

/// A left operand rounded to bf16, two neighbours of a row in one lane, row after row.
pub(super) fn pair_rows(out: &mut [u32], a: Mat) {
    let per_row = a.cols.div_ceil(2);
    for (i, row) in out.chunks_exact_mut(per_row.max(1)).enumerate() {
        match a.data {
            Elems::F32(x) if a.col_stride == 1 => {
                row[per_row - 1] = 0;
                // In memory a row of pairs is a row of bf16.
                narrow(bytemuck::cast_slice_mut(row), &x[i * a.row_stride..][..a.cols]);
            }
            _ => row.iter_mut().enumerate().for_each(|(p, v)| *v = a.pair([i, 2 * p], [i, 2 * p + 1])),
        }
    }
}

/// The same pairs of a left operand whose rows lie side by side, step after step.
pub(super) fn pair_columns(out: &mut [u32], a: Mat) {
    let Elems::F32(x) = a.data else { unreachable!("left operands are single precision") };
    let column = |k: usize| &x[k * a.col_stride..][..a.rows];
    for (p, lanes) in out.chunks_exact_mut(a.rows.max(1)).enumerate() {
        if 2 * p + 1 < a.cols {
            zip_rounded(lanes, column(2 * p), column(2 * p + 1));
        } else {
            lanes.iter_mut().zip(column(2 * p)).for_each(|(o, v)| *o = u32::from(round(*v)));
        }
    }
}

impl Mat<'_> {
    /// Two elements as bf16 in one lane, zero where there is none.
    fn pair(&self, low: [usize; 2], high: [usize; 2]) -> u32 {
        let bits = |[i, j]: [usize; 2]| {
            let inside = i < self.rows && j < self.cols;
            if inside { u32::from(round(self.data.get(i * self.row_stride + j * self.col_stride))) } else { 0 }
        };
        bits(low) | bits(high) << 16
    }
}

/// The bits of the nearest bf16, ties to even; the same as `bf16::from_f32`, without branches.
#[inline(always)]
pub(super) fn round(v: f32) -> u16 {
    let bits = v.to_bits();
    let quiet = bits | 0x0040_0000;
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    ((if v.is_nan() { quiet } else { nearest }) >> 16) as u16
}

wide! {
    fn narrow(out: &mut [u16], x: &[f32]) {
        out.iter_mut().zip(x).for_each(|(o, v)| *o = round(*v));
    }
}

wide! {
    /// As [`zip`], rounded.
    fn zip_rounded(out: &mut [u32], low: &[f32], high: &[f32]) {
        for ((o, low), high) in out.iter_mut().zip(low).zip(high) {
            *o = u32::from(round(*low)) | u32::from(round(*high)) << 16;
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

    /// Element (i, j) is a number of its own that bf16 cannot hold.
    fn numbers(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| 1.001 + i as f32).collect()
    }

    fn pair(low: f32, high: f32) -> u32 {
        u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
    }

    #[test]
    fn pairs_hold_two_neighbours_along_the_sum_for_every_layout_type_and_odd_size() {
        for (k, n) in [(1, 1), (7, 5), (8, 16), (129, 33), (300, 17), (2, 40)] {
            let (x, halves) = (numbers(k, n), numbers(k, n).iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());
            for data in [Elems::F32(&x), Elems::Bf16(&halves)] {
                // The same memory as [k, n] and, transposed, as [n, k].
                for b in [Mat::strided(data, k, n, n), Mat::strided(data, n, k, k).t()] {
                    let value = |i: usize, j: usize| {
                        if i < k && j < n { b.data.get(i * b.row_stride + j * b.col_stride) } else { 0.0 }
                    };
                    let pairs = k.div_ceil(2);
                    let mut out = vec![u32::MAX; pairs * n.next_multiple_of(NR)];
                    pack_pairs(&mut out, b, 0..pairs, 0..n);
                    for (at, lane) in out.iter().enumerate() {
                        let (panel, p, j) = (at / (pairs * NR), at / NR % pairs, at % NR);
                        let want = pair(value(2 * p, panel * NR + j), value(2 * p + 1, panel * NR + j));
                        assert_eq!(*lane, want, "{k}x{n} at {at}");
                    }
                    if let Elems::F32(_) = data {
                        let a = b.t();
                        let mut rows = vec![u32::MAX; n * pairs];
                        pair_rows(&mut rows, a);
                        assert!((0..n * pairs).all(|i| {
                            let (j, p) = (i / pairs, i % pairs);
                            rows[i] == pair(value(2 * p, j), value(2 * p + 1, j))
                        }));
                        if a.row_stride == 1 {
                            let mut columns = vec![u32::MAX; n * pairs];
                            pair_columns(&mut columns, a);
                            assert!((0..n * pairs).all(|i| columns[i] == rows[i % n * pairs + i / n]));
                        }
                    }
                }
            }
        }
    }
}
