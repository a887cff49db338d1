//! The processor's matrix product: packed panels, register tiles of up to 12 x 32, AVX-512 where it exists.

use std::cell::RefCell;

use rayon::prelude::*;

use super::detect::{has_avx512, has_bf16};
use super::pack::{NR, pack_bf16, pack_f32};
use super::{Epilogue, Mat};
use crate::device::{DType, Elems};

/// Length of one uninterrupted chain of multiply-adds. Part of the definition of the result: see the module's
/// documentation. A panel of this depth and [`NC`] columns fits the second-level cache.
const KC: usize = 384;
/// Columns that are packed together.
const NC: usize = 384;
/// Rows per tile: with 2 registers of columns, 24 accumulators plus operands fill the 32 registers.
const MR: usize = 12;
/// Below this many multiply-adds a second thread costs more than it brings.
const PARALLEL_WORK: usize = 1 << 18;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    f32: Vec<f32>,
    u32: Vec<u32>,
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

pub(super) fn matmul(c: &mut [f32], stride: usize, a: Mat, b: Mat, epilogue: Epilogue, parallel: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "matmul of {m}x{k} by {}x{n}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        stride >= n && c.len() >= (m - 1) * stride + n,
        "matmul: C of {} elements for {m}x{n} stride {stride}",
        c.len()
    );
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n, "matmul: bias for {n} columns");
    }
    let out = Out { ptr: c.as_mut_ptr(), stride };

    let half_a;
    let a = match a.data {
        Elems::F32(_) => a,
        _ => {
            half_a = widen(a);
            Mat::new(&half_a, m, k)
        }
    };
    let pairs = match b.data {
        Elems::Bf16(_) if has_bf16() => Some(round_to_pairs(a)),
        _ => None,
    };
    let task = Task { a, b, pairs: pairs.as_deref(), epilogue, out };

    let threads = if parallel && m * n * k >= PARALLEL_WORK { rayon::current_num_threads() } else { 1 };
    if threads == 1 {
        task.run(0..m, 0..n);
        return;
    }
    // Whole panels of columns first (nothing is packed twice), then rows until every thread has work.
    let col_blocks = n.div_ceil(NC).max(threads.min(n.div_ceil(2 * NR)));
    let col_step = n.div_ceil(col_blocks).next_multiple_of(NR);
    let col_blocks = n.div_ceil(col_step);
    let row_blocks = (2 * threads).div_ceil(col_blocks).min(m.div_ceil(2 * MR)).max(1);
    let row_step = m.div_ceil(row_blocks).next_multiple_of(MR);
    let row_blocks = m.div_ceil(row_step);
    (0..row_blocks * col_blocks).into_par_iter().for_each(|i| {
        let (r, c) = (i % row_blocks * row_step, i / row_blocks * col_step);
        task.run(r..(r + row_step).min(m), c..(c + col_step).min(n));
    });
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

/// The left operand rounded to bf16, two neighbours along `k` in one word, row-major.
fn round_to_pairs(a: Mat) -> Vec<u32> {
    let Elems::F32(x) = a.data else { unreachable!("widened before") };
    let pairs = a.cols.div_ceil(2);
    let mut out = vec![0u32; a.rows * pairs];
    out.par_chunks_exact_mut(pairs.max(1)).with_min_len(16).enumerate().for_each(|(i, row)| {
        let at = |j: usize| i * a.row_stride + j * a.col_stride;
        if a.col_stride == 1 {
            // In memory a row of pairs is a row of bf16, and this loop becomes vector code.
            let halves: &mut [u16] = bytemuck::cast_slice_mut(row);
            halves.iter_mut().zip(&x[at(0)..][..a.cols]).for_each(|(h, v)| *h = round(*v));
        } else {
            for (p, v) in row.iter_mut().enumerate() {
                let high = if 2 * p + 1 < a.cols { u32::from(round(x[at(2 * p + 1)])) << 16 } else { 0 };
                *v = u32::from(round(x[at(2 * p)])) | high;
            }
        }
    });
    out
}

/// The bits of the nearest bf16, ties to even; the same as `bf16::from_f32`, without branches.
#[inline(always)]
pub(super) fn round(v: f32) -> u16 {
    let bits = v.to_bits();
    let quiet = bits | 0x0040_0000;
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    ((if v.is_nan() { quiet } else { nearest }) >> 16) as u16
}

struct Task<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    pairs: Option<&'a [u32]>,
    epilogue: Epilogue<'a>,
    out: Out,
}

impl Task<'_> {
    fn run(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) {
        for j0 in cols.clone().step_by(NC) {
            let j1 = (j0 + NC).min(cols.end);
            match self.pairs {
                Some(pairs) => self.run_bf16(pairs, rows.clone(), j0, j1),
                None => self.run_f32(rows.clone(), j0, j1),
            }
            if let Some(bias) = self.epilogue.bias {
                for i in rows.clone() {
                    // SAFETY: row `i` and columns `j0..j1` belong to this task and lie inside `C` (checked on entry).
                    let row =
                        unsafe { std::slice::from_raw_parts_mut(self.out.ptr.add(i * self.out.stride + j0), j1 - j0) };
                    for (v, b) in row.iter_mut().zip(&bias[j0..j1]) {
                        *v += b;
                    }
                }
            }
        }
    }

    fn run_f32(&self, rows: std::ops::Range<usize>, j0: usize, j1: usize) {
        let Elems::F32(x) = self.a.data else { unreachable!("widened before") };
        let (k, panels) = (self.a.cols, (j1 - j0).div_ceil(NR));
        let mut packed = SCRATCH.with_borrow_mut(|s| std::mem::take(&mut s.f32));
        packed.resize(panels * NR * KC, 0.0);
        for k0 in (0..k.max(1)).step_by(KC) {
            let k1 = (k0 + KC).min(k);
            let depth = k1 - k0;
            pack_f32(&mut packed[..panels * NR * depth], self.b, k0, k1, j0, j1);
            let left = Left {
                ptr: x[k0 * self.a.col_stride..].as_ptr(),
                row_stride: self.a.row_stride,
                step: self.a.col_stride,
            };
            self.tiles(rows.clone(), j0, j1, depth, &packed, left, k0 > 0, tile_f32);
        }
        SCRATCH.with_borrow_mut(|s| s.f32 = packed);
    }

    fn run_bf16(&self, pairs: &[u32], rows: std::ops::Range<usize>, j0: usize, j1: usize) {
        let Elems::Bf16(b) = self.b.data else { unreachable!("pairs only for bf16") };
        let (per_row, panels) = (self.a.cols.div_ceil(2), (j1 - j0).div_ceil(NR));
        let mut packed = SCRATCH.with_borrow_mut(|s| std::mem::take(&mut s.u32));
        packed.resize(panels * NR * KC, 0);
        for p0 in (0..per_row.max(1)).step_by(KC) {
            let p1 = (p0 + KC).min(per_row);
            let depth = p1 - p0;
            pack_bf16(&mut packed[..panels * NR * depth], self.b, b, p0, p1, j0, j1);
            let left = Left { ptr: pairs[p0..].as_ptr(), row_stride: per_row, step: 1 };
            self.tiles(rows.clone(), j0, j1, depth, &packed, left, p0 > 0, tile_bf16);
        }
        SCRATCH.with_borrow_mut(|s| s.u32 = packed);
    }

    /// All register tiles of one packed block.
    #[expect(clippy::too_many_arguments, reason = "the loop nest's own coordinates")]
    fn tiles<T>(
        &self,
        rows: std::ops::Range<usize>,
        j0: usize,
        j1: usize,
        depth: usize,
        packed: &[T],
        left: Left<T>,
        later_chunk: bool,
        tile: TileFn<T>,
    ) {
        let add = self.epilogue.accumulate || later_chunk;
        for i in rows.clone().step_by(MR) {
            let height = MR.min(rows.end - i);
            for (p, j) in (j0..j1).step_by(NR).enumerate() {
                let panel = &packed[p * NR * depth..][..NR * depth];
                // SAFETY: rows `i..i+height` and columns `j..` up to `j1` lie inside `A` and `C`: `Mat` and the
                // checks on entry cover the last element of both; the panel holds `depth` steps of `NR` lanes.
                unsafe {
                    let a = Left { ptr: left.ptr.add(i * left.row_stride), ..left };
                    let c = self.out.ptr.add(i * self.out.stride + j);
                    let store =
                        Store { c, stride: self.out.stride, width: NR.min(j1 - j), scale: self.epilogue.scale, add };
                    tile(height, depth, a, panel.as_ptr(), store);
                }
            }
        }
    }
}

/// Where a tile's left values are: row `i`, step `k` at `ptr[i·row_stride + k·step]`.
struct Left<T> {
    ptr: *const T,
    row_stride: usize,
    step: usize,
}

impl<T> Clone for Left<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Left<T> {}

/// Where and how a tile's result goes.
#[derive(Clone, Copy)]
struct Store {
    c: *mut f32,
    stride: usize,
    width: usize,
    scale: f32,
    add: bool,
}

type TileFn<T> = unsafe fn(usize, usize, Left<T>, *const T, Store);

/// In words, what [`matmul`] does with right operands of `dtype`.
pub(super) fn path(dtype: DType) -> &'static str {
    match (dtype, has_avx512()) {
        (DType::Bf16, _) if has_bf16() => "AVX512-BF16 dot products, summed in f32",
        (DType::Bf16 | DType::F16, true) => "widened to f32, AVX-512",
        (DType::Bf16 | DType::F16, false) => "widened to f32, the vectors the program was built for",
        (DType::F32, true) => "AVX-512",
        (DType::F32, false) => "the vectors the program was built for",
    }
}

/// One tile of `height` rows by one panel in single precision.
unsafe fn tile_f32(height: usize, depth: usize, a: Left<f32>, panel: *const f32, store: Store) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the feature is there; pointers as promised by the caller.
        unsafe { avx512::tile_f32(height, depth, a, panel, store) };
        return;
    }
    // Without 32 wide registers, three rows at a time fill what there is; the chain per element is the same.
    for i in (0..height).step_by(3) {
        // SAFETY: rows `i..` are part of the tile.
        unsafe {
            let a = Left { ptr: a.ptr.add(i * a.row_stride), ..a };
            let store = Store { c: store.c.add(i * store.stride), ..store };
            match height - i {
                1 => portable::<1>(depth, a, panel, store),
                2 => portable::<2>(depth, a, panel, store),
                _ => portable::<3>(depth, a, panel, store),
            }
        }
    }
}

unsafe fn portable<const ROWS: usize>(depth: usize, a: Left<f32>, panel: *const f32, store: Store) {
    let mut acc = [[0.0f32; NR]; ROWS];
    for k in 0..depth {
        // SAFETY: the panel holds `depth` steps of `NR` values, `a` the tile's rows.
        unsafe {
            let b = &*panel.add(k * NR).cast::<[f32; NR]>();
            for (i, row) in acc.iter_mut().enumerate() {
                let x = *a.ptr.add(i * a.row_stride + k * a.step);
                for (v, b) in row.iter_mut().zip(b) {
                    *v = x.mul_add(*b, *v);
                }
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: `width` columns of the tile's row `i` lie inside `C`.
        let out = unsafe { std::slice::from_raw_parts_mut(store.c.add(i * store.stride), store.width) };
        for (c, v) in out.iter_mut().zip(row) {
            *c = if store.add { v.mul_add(store.scale, *c) } else { v * store.scale };
        }
    }
}

/// One tile of `height` rows by one panel of bf16 pairs.
unsafe fn tile_bf16(height: usize, depth: usize, a: Left<u32>, panel: *const u32, store: Store) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: pairs are only made where the feature is there; pointers as promised by the caller.
    unsafe {
        avx512::tile_bf16(height, depth, a, panel, store)
    };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("bf16 tiles need AVX512-BF16: {height} {depth} {:?} {panel:?} {:?}", a.ptr, store.c);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Left, NR, Store};

    macro_rules! tile {
        ($name:ident, $inner:ident, $lane:ty, $features:literal, $load:expr, $splat:expr, $fma:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(height: usize, depth: usize, a: Left<$lane>, panel: *const $lane, store: Store) {
                // SAFETY: passed on from the caller.
                unsafe {
                    match height {
                        1 => $inner::<1>(depth, a, panel, store),
                        2 => $inner::<2>(depth, a, panel, store),
                        3 => $inner::<3>(depth, a, panel, store),
                        4 => $inner::<4>(depth, a, panel, store),
                        5 => $inner::<5>(depth, a, panel, store),
                        6 => $inner::<6>(depth, a, panel, store),
                        7 => $inner::<7>(depth, a, panel, store),
                        8 => $inner::<8>(depth, a, panel, store),
                        9 => $inner::<9>(depth, a, panel, store),
                        10 => $inner::<10>(depth, a, panel, store),
                        11 => $inner::<11>(depth, a, panel, store),
                        _ => $inner::<12>(depth, a, panel, store),
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn $inner<const ROWS: usize>(depth: usize, a: Left<$lane>, panel: *const $lane, store: Store) {
                let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
                let mut left = a.ptr;
                let mut right = panel;
                for _ in 0..depth {
                    // SAFETY: the panel holds `depth` steps of `NR` lanes; `a` holds `ROWS` rows of `depth` steps.
                    unsafe {
                        let b0 = $load(right);
                        let b1 = $load(right.add(16));
                        for (i, row) in acc.iter_mut().enumerate() {
                            let x = $splat(*left.add(i * a.row_stride));
                            row[0] = $fma(row[0], x, b0);
                            row[1] = $fma(row[1], x, b1);
                        }
                    }
                    left = left.wrapping_add(a.step);
                    right = right.wrapping_add(NR);
                }
                let masks = [mask(store.width), mask(store.width.saturating_sub(16))];
                let scale = _mm512_set1_ps(store.scale);
                for (i, row) in acc.iter().enumerate() {
                    for (half, (v, m)) in row.iter().zip(masks).enumerate() {
                        // SAFETY: the mask keeps to the `width` columns of row `i`, which lie inside `C`.
                        unsafe {
                            let c = store.c.wrapping_add(i * store.stride + 16 * half);
                            let v = if store.add {
                                _mm512_fmadd_ps(*v, scale, _mm512_maskz_loadu_ps(m, c))
                            } else {
                                _mm512_mul_ps(*v, scale)
                            };
                            _mm512_mask_storeu_ps(c, m, v);
                        }
                    }
                }
            }
        };
    }

    fn mask(width: usize) -> __mmask16 {
        if width >= 16 { u16::MAX } else { (1 << width) - 1 }
    }

    tile!(tile_f32, inner_f32, f32, "avx512f,avx512vl", |p| _mm512_loadu_ps(p), |x| _mm512_set1_ps(x), |c, x, b| {
        _mm512_fmadd_ps(x, b, c)
    });
    tile!(
        tile_bf16,
        inner_bf16,
        u32,
        "avx512f,avx512vl,avx512bf16",
        |p: *const u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())),
        |x: u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32)),
        |c, x, b| _mm512_dpbf16_ps(c, x, b)
    );
}
