//! A right operand that one task packs once and multiplies often, as attention does with keys and values.

use super::Mat;
use super::detect::has_bf16;
use super::driver::{KC, single, tiles_of};
use super::pack::{pack_f32, pack_pairs, pair_columns, pair_rows};
use super::tile::{Left, NR, Panels, TileFn, tile_bf16, tile_f32};
use crate::device::DType;
use crate::ops::cpu::scratch;

/// What a 32-bit lane of a packed operand holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Lane {
    /// One number in single precision.
    Single,
    /// Two bf16 neighbours along the sum.
    Pair,
}

impl Lane {
    /// How this processor multiplies numbers that may be rounded to `dtype`: the question of
    /// [`matmul`](super::matmul), for operands that are stored in f32.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::Bf16 && has_bf16() { Self::Pair } else { Self::Single }
    }

    /// Lanes that `k` neighbours take.
    fn lanes(self, k: usize) -> usize {
        match self {
            Self::Single => k,
            Self::Pair => k.div_ceil(2),
        }
    }

    /// Floats of the buffer that [`Packed::new`] needs for a matrix of `rows` by `cols`.
    pub fn room(self, rows: usize, cols: usize) -> usize {
        cols.next_multiple_of(NR) * self.lanes(rows)
    }
}

/// A matrix `[k, n]` in panels.
pub(in crate::ops) struct Packed<'a> {
    panels: &'a [f32],
    lane: Lane,
    rows: usize,
}

impl<'a> Packed<'a> {
    /// Packs `b`, of which `buffer` has the [`Lane::room`].
    pub fn new(buffer: &'a mut [f32], b: Mat, lane: Lane) -> Self {
        assert_eq!(buffer.len(), lane.room(b.rows, b.cols), "room for {}x{}", b.rows, b.cols);
        match lane {
            Lane::Single => pack_f32(buffer, b, 0..b.rows, 0..b.cols),
            Lane::Pair => pack_pairs(bytemuck::cast_slice_mut(buffer), b, 0..lane.lanes(b.rows), 0..b.cols),
        }
        Self { panels: buffer, lane, rows: b.rows }
    }

    /// `C = scale·A·B (+ C)` for the first `n` columns of `B` and as many of its rows as `a` `[m, k]` has columns, in
    /// chains of [`KC`]; `to` is the first element of `C` and the distance of its rows.
    ///
    /// # Safety
    /// `n` columns of `m` rows from `to` on may be written, and nobody else has them meanwhile.
    pub unsafe fn multiply(&self, a: Mat, n: usize, to: (*mut f32, usize), scale: f32, add: bool) {
        assert!(a.cols <= self.rows, "a product of {} steps with {} rows", a.cols, self.rows);
        let lanes = self.lane.lanes(self.rows);
        assert!(n.next_multiple_of(NR) * lanes <= self.panels.len(), "a product with {n} columns");
        let size = [a.rows, n];
        match self.lane {
            Lane::Single => {
                let left = Left { ptr: single(a).as_ptr(), row_stride: a.row_stride, step: a.col_stride };
                let right = Panels { ptr: self.panels.as_ptr(), depth: lanes };
                // SAFETY: `a` covers its last element, the panels hold as many steps; the rest is passed on.
                unsafe { chains(tile_f32(), size, a.cols, left, right, to, scale, add) };
            }
            Lane::Pair => scratch(a.rows * self.lane.lanes(a.cols), |pairs| {
                let (pairs, steps): (&mut [u32], _) = (bytemuck::cast_slice_mut(pairs), self.lane.lanes(a.cols));
                let left = if a.row_stride == 1 {
                    pair_columns(pairs, a);
                    Left { ptr: pairs.as_ptr(), row_stride: 1, step: a.rows }
                } else {
                    pair_rows(pairs, a);
                    Left { ptr: pairs.as_ptr(), row_stride: steps, step: 1 }
                };
                let right = Panels { ptr: self.panels.as_ptr().cast(), depth: lanes };
                // SAFETY: as above.
                unsafe { chains(tile_bf16, size, steps, left, right, to, scale, add) };
            }),
        }
    }
}

/// [`tiles_of`] in chains of [`KC`] steps.
///
/// # Safety
/// As [`tiles_of`].
#[expect(clippy::too_many_arguments, reason = "the loop nest's own coordinates")]
unsafe fn chains<T>(
    tile: TileFn<T>,
    size: [usize; 2],
    steps: usize,
    left: Left<T>,
    right: Panels<T>,
    to: (*mut f32, usize),
    scale: f32,
    add: bool,
) {
    for first in (0..steps.max(1)).step_by(KC) {
        let left = Left { ptr: left.ptr.wrapping_add(first * left.step), ..left };
        let right = Panels { ptr: right.ptr.wrapping_add(first * NR), ..right };
        // SAFETY: passed on from the caller.
        unsafe { tiles_of(tile, size, KC.min(steps - first), left, right, to, scale, add || first > 0) };
    }
}
