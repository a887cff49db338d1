//! How a product is cut into blocks that stay in cache, and the blocks among threads.

use std::ops::Range;

use rayon::prelude::*;

use super::detect::{has_avx512, has_bf16};
use super::pack::{pack_f32, pack_pairs, pair_rows};
use super::tile::{Left, NR, PANELS, Panels, Store, TileFn, rows_per_tile, tile_bf16, tile_f32};
use super::{Epilogue, Mat};
use crate::device::{Elems, workers};
use crate::ops::cpu::{at_least, scratch};

/// Length of one uninterrupted chain of multiply-adds. Part of the definition of the result: see the module's
/// documentation.
pub(in crate::ops) const KC: usize = 256;
/// Rows that are finished together: what is done to them at the end finds them in the second-level cache.
const MC: usize = 96;
/// Below this many multiply-adds a second thread costs more than it brings.
const PARALLEL_WORK: usize = 1 << 18;

/// With so many rows a task, packing is nothing beside the products.
const TALL: usize = 256;

/// Columns that are packed together: `KC` steps of them stay in the second-level cache, which is twice as large where
/// there is AVX-512.
fn packed_columns() -> usize {
    if has_avx512() { 384 } else { 192 }
}

/// What is done to a piece of a finished row: its number, the number of its first column, its elements.
pub(in crate::ops) type Finish<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// A product of few steps that is added to some rows while they are in cache: `C[rows] += scale·a·b`.
pub(in crate::ops) struct Low<'a> {
    pub rows: Range<usize>,
    /// `[rows, r]`, single precision.
    pub a: Mat<'a>,
    /// `[r, n]`.
    pub b: Mat<'a>,
    pub scale: f32,
}

/// `C = scale·A·B (+ C)`, then `low`, then `finish`.
pub(in crate::ops) struct Product<'a> {
    /// `[m, n]`, rows `stride` apart.
    pub c: &'a mut [f32],
    pub stride: usize,
    /// `[k, n]`.
    pub b: Mat<'a>,
    pub scale: f32,
    pub accumulate: bool,
    pub low: &'a [Low<'a>],
    pub finish: Option<&'a Finish<'a>>,
}

impl<'a> Product<'a> {
    /// The product alone.
    pub fn new(c: &'a mut [f32], stride: usize, b: Mat<'a>) -> Self {
        Self { c, stride, b, scale: 1.0, accumulate: false, low: &[], finish: None }
    }

    /// Whether the right operand is in bf16.
    fn is_bf16(&self) -> bool {
        matches!(self.b.data, Elems::Bf16(_))
    }
}

/// `C` as seen by tasks that each own different rows and columns of it.
#[derive(Clone, Copy)]
struct Out {
    ptr: *mut f32,
    stride: usize,
}
// SAFETY: tasks write disjoint row and column ranges of a buffer that outlives them all.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

pub(super) fn one(c: &mut [f32], stride: usize, a: Mat, b: Mat, epilogue: Epilogue, parallel: bool) {
    let Epilogue { scale, accumulate, bias } = epilogue;
    if let Some(bias) = bias {
        assert_eq!(bias.len(), b.cols, "matmul: bias for {} columns", b.cols);
    }
    let add_bias = |_: usize, first: usize, row: &mut [f32]| {
        let bias = &bias.expect("only used where there is one")[first..];
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    };
    let finish: Option<&Finish> = if bias.is_some() { Some(&add_bias) } else { None };
    run(a, vec![Product { c, stride, b, scale, accumulate, low: &[], finish }], parallel);
}

/// Products of one left operand `a` `[m, k]`, which is prepared once, in one parallel loop.
pub(in crate::ops) fn products(a: Mat, products: Vec<Product>) {
    run(a, products, true);
}

fn run(a: Mat, products: Vec<Product>, parallel: bool) {
    let (m, k) = (a.rows, a.cols);
    if m == 0 {
        return;
    }
    let widened;
    let a = match a.data {
        Elems::F32(_) => a,
        _ => {
            widened = widen(a);
            Mat::new(&widened, m, k)
        }
    };
    if has_bf16() && products.iter().any(Product::is_bf16) {
        scratch(m * k.div_ceil(2), |pairs| {
            let pairs = bytemuck::cast_slice_mut(pairs);
            round_to_pairs(pairs, a);
            run_all(a, Some(pairs), products, parallel);
        });
    } else {
        run_all(a, None, products, parallel);
    }
}

/// [`run`] of a single-precision `a`, and of its `pairs` where a product needs them.
fn run_all(a: Mat, pairs: Option<&[u32]>, products: Vec<Product>, parallel: bool) {
    let (m, k) = (a.rows, a.cols);
    let tasks: Vec<Task> = products
        .into_iter()
        .filter(|p| p.b.cols > 0)
        .map(|p| {
            let n = p.b.cols;
            assert_eq!(k, p.b.rows, "matmul of {m}x{k} by {}x{n}", p.b.rows);
            let fits = p.stride >= n && p.c.len() >= (m - 1) * p.stride + n;
            assert!(fits, "matmul: C of {} elements for {m}x{n} stride {}", p.c.len(), p.stride);
            for low in p.low {
                let fits = low.rows.end <= m && low.a.rows == low.rows.len() && low.b.cols == n;
                assert!(fits && low.a.cols == low.b.rows, "matmul: low product of rows {:?}", low.rows);
            }
            let pairs = pairs.filter(|_| p.is_bf16());
            Task { out: Out { ptr: p.c.as_mut_ptr(), stride: p.stride }, a, pairs, p }
        })
        .collect();

    let work: usize = tasks.iter().map(|t| m * t.p.b.cols * k).sum();
    let threads = if parallel && work >= PARALLEL_WORK { workers() } else { 1 };
    if threads == 1 {
        tasks.iter().for_each(|t| t.run(0..m, 0..t.p.b.cols));
        return;
    }
    let parts: Vec<(&Task, Range<usize>, Range<usize>)> =
        tasks.iter().flat_map(|t| parts(m, t.p.b.cols, threads).map(move |(rows, cols)| (t, rows, cols))).collect();
    parts.into_par_iter().for_each(|(task, rows, cols)| task.run(rows, cols));
}

/// Rows and columns of about equal tasks. What is packed once serves all rows of a task: tall products are cut into rows
/// alone, low ones into columns first.
fn parts(m: usize, n: usize, threads: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mr = rows_per_tile();
    let tall = m >= TALL * threads;
    let wanted = if tall { 1 } else { threads.min(n.div_ceil(4 * NR)) };
    let col_blocks = n.div_ceil(packed_columns()).max(wanted);
    let col_step = n.div_ceil(col_blocks).next_multiple_of(PANELS * NR);
    let col_blocks = n.div_ceil(col_step);
    let tasks = if tall { threads } else { 2 * threads };
    let row_blocks = tasks.div_ceil(col_blocks).min(m.div_ceil(2 * mr)).max(1);
    let row_step = m.div_ceil(row_blocks).next_multiple_of(mr);
    let row_blocks = m.div_ceil(row_step);
    (0..row_blocks * col_blocks).map(move |i| {
        let (r, c) = (i % row_blocks * row_step, i / row_blocks * col_step);
        (r..(r + row_step).min(m), c..(c + col_step).min(n))
    })
}

/// `C = scale·A·B (+ C)` for `size` rows and columns over `depth` steps, in register tiles: `left` at the first row,
/// `right` at the first panel, `to` the first element of `C` and the distance of its rows.
///
/// # Safety
/// `left` holds the rows of `depth` steps, `right` the panels of all columns, and the columns of all rows lie inside `C`,
/// which nobody else has meanwhile.
pub(in crate::ops) unsafe fn tiles(
    size: [usize; 2],
    depth: usize,
    left: Left<f32>,
    right: Panels<f32>,
    to: (*mut f32, usize),
    scale: f32,
    add: bool,
) {
    // SAFETY: passed on from the caller.
    unsafe { tiles_of(tile_f32(), size, depth, left, right, to, scale, add) };
}

/// [`tiles`] for any lanes.
///
/// # Safety
/// As [`tiles`].
#[expect(clippy::too_many_arguments, reason = "the loop nest's own coordinates")]
pub(super) unsafe fn tiles_of<T>(
    tile: TileFn<T>,
    [m, n]: [usize; 2],
    depth: usize,
    left: Left<T>,
    right: Panels<T>,
    (c, stride): (*mut f32, usize),
    scale: f32,
    add: bool,
) {
    // Tiles of equal height waste less than full ones and a small rest.
    let count = m.div_ceil(rows_per_tile());
    let row = |i: usize| i * m / count;
    for i in 0..count {
        let (first, height) = (row(i), row(i + 1) - row(i));
        for (t, j) in (0..n).step_by(PANELS * NR).enumerate() {
            // SAFETY: a part of what the caller promises.
            unsafe {
                let left = Left { ptr: left.ptr.add(first * left.row_stride), ..left };
                let right = Panels { ptr: right.ptr.add(t * PANELS * NR * right.depth), ..right };
                let c = c.add(first * stride + j);
                tile(height, depth, left, right, Store { c, stride, width: (PANELS * NR).min(n - j), scale, add });
            }
        }
    }
}

/// A half-precision left operand as single precision, row-major.
fn widen(a: Mat) -> Vec<f32> {
    let mut out = vec![0.0; a.rows * a.cols];
    for (i, row) in out.chunks_exact_mut(a.cols.max(1)).enumerate() {
        for (j, v) in row.iter_mut().enumerate() {
            *v = a.data.get(i * a.row_stride + j * a.col_stride);
        }
    }
    out
}

pub(super) fn single(a: Mat<'_>) -> &[f32] {
    let Elems::F32(x) = a.data else { unreachable!("left operands are single precision") };
    x
}

/// The left operand in pairs, row-major.
fn round_to_pairs(out: &mut [u32], a: Mat) {
    /// Rows that are worth a task of their own.
    const ROWS: usize = 16;
    let pairs = a.cols.div_ceil(2);
    out.par_chunks_mut((ROWS * pairs).max(1)).with_min_len(at_least(1)).enumerate().for_each(|(i, out)| {
        pair_rows(out, a.rows_in(i * ROWS..((i + 1) * ROWS).min(a.rows)));
    });
}

struct Task<'a> {
    a: Mat<'a>,
    pairs: Option<&'a [u32]>,
    out: Out,
    p: Product<'a>,
}
// SAFETY: the product's `c` is only reached through `out`, whose rows and columns the parts divide among themselves.
unsafe impl Sync for Task<'_> {}

impl Task<'_> {
    fn run(&self, rows: Range<usize>, cols: Range<usize>) {
        let nc = packed_columns();
        for j in cols.clone().step_by(nc) {
            let cols = j..(j + nc).min(cols.end);
            match self.pairs {
                Some(pairs) => self.run_bf16(pairs, rows.clone(), cols),
                None => self.run_f32(rows.clone(), cols),
            }
        }
    }

    fn run_f32(&self, rows: Range<usize>, cols: Range<usize>) {
        let (x, a) = (single(self.a), self.a);
        self.chunks(a.cols, rows, cols, tile_f32(), |packed: &mut [f32], steps, cols| {
            pack_f32(packed, self.p.b, steps.clone(), cols);
            Left { ptr: x[steps.start * a.col_stride..].as_ptr(), row_stride: a.row_stride, step: a.col_stride }
        });
    }

    fn run_bf16(&self, pairs: &[u32], rows: Range<usize>, cols: Range<usize>) {
        let per_row = self.a.cols.div_ceil(2);
        self.chunks(per_row, rows, cols, tile_bf16, |packed: &mut [f32], steps, cols| {
            pack_pairs(bytemuck::cast_slice_mut(packed), self.p.b, steps.clone(), cols);
            Left { ptr: pairs[steps.start..].as_ptr(), row_stride: per_row, step: 1 }
        });
    }

    /// All chunks of `steps`; `pack` packs those it is given and says where the left values are.
    fn chunks<T>(
        &self,
        steps: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        tile: TileFn<T>,
        pack: impl Fn(&mut [f32], Range<usize>, Range<usize>) -> Left<T>,
    ) {
        let panels = cols.len().div_ceil(NR);
        scratch(panels * NR * KC, |packed| {
            for first in (0..steps.max(1)).step_by(KC) {
                let chunk = first..(first + KC).min(steps);
                let left = pack(&mut packed[..panels * NR * chunk.len()], chunk.clone(), cols.clone());
                let right = Panels { ptr: packed.as_ptr().cast(), depth: chunk.len() };
                let add = self.p.accumulate || first > 0;
                let run = |rows: Range<usize>| {
                    let left = Left { ptr: left.ptr.wrapping_add(rows.start * left.row_stride), ..left };
                    let (size, to) = ([rows.len(), cols.len()], self.to(rows.start, cols.start));
                    // SAFETY: rows and columns lie inside `A` and `C`: `Mat` and the checks on entry cover the last
                    // element of both; each panel holds `depth` steps of `NR` lanes.
                    unsafe { tiles_of(tile, size, right.depth, left, right, to, self.p.scale, add) };
                };
                if chunk.end < steps {
                    run(rows.clone());
                    continue;
                }
                for first in rows.clone().step_by(MC) {
                    let rows = first..(first + MC).min(rows.end);
                    run(rows.clone());
                    self.finish(rows, cols.clone());
                }
            }
        });
    }

    /// Element `(row, col)` of `C`, and the distance of its rows.
    fn to(&self, row: usize, col: usize) -> (*mut f32, usize) {
        (self.out.ptr.wrapping_add(row * self.out.stride + col), self.out.stride)
    }

    /// Adds the low products to finished rows, and does what is to be done to them.
    fn finish(&self, rows: Range<usize>, cols: Range<usize>) {
        for low in self.p.low {
            let (from, to) = (rows.start.max(low.rows.start), rows.end.min(low.rows.end));
            if from >= to {
                continue;
            }
            let (depth, panels) = (low.b.rows, cols.len().div_ceil(NR));
            scratch(panels * NR * depth, |packed| {
                pack_f32(packed, low.b, 0..depth, cols.clone());
                let a = low.a;
                let ptr = single(a)[(from - low.rows.start) * a.row_stride..].as_ptr();
                let left = Left { ptr, row_stride: a.row_stride, step: a.col_stride };
                let right = Panels { ptr: packed.as_ptr(), depth };
                let (size, to) = ([to - from, cols.len()], self.to(from, cols.start));
                // SAFETY: as above, for the low operand.
                unsafe { tiles(size, depth, left, right, to, low.scale, true) };
            });
        }
        if let Some(finish) = self.p.finish {
            for i in rows {
                // SAFETY: row `i` and these columns belong to this task and lie inside `C` (checked on entry).
                let row = unsafe {
                    std::slice::from_raw_parts_mut(self.out.ptr.add(i * self.out.stride + cols.start), cols.len())
                };
                finish(i, cols.start, row);
            }
        }
    }
}
