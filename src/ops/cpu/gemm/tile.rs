//! The inner loop: a tile of up to 12 rows by two panels of 16 columns, held in registers.
//!
//! Every element is one chain of fused multiply-adds whatever the vectors are, so that all of these give the same bits
//! (the bf16 tile, whose instruction sums pairs, is the exception: where there is one, there is nothing else).

use super::detect::{has_avx2, has_avx512};

/// Columns per panel: one 512-bit register.
pub(in crate::ops) const NR: usize = 16;
/// Panels per tile.
pub(in crate::ops) const PANELS: usize = 2;

/// Rows per tile: as many as leave the registers, and the first-level cache, room for the rest.
pub(in crate::ops) fn rows_per_tile() -> usize {
    if has_avx512() { 12 } else { 6 }
}

/// Where a tile's left values are: row `i`, step `k` at `ptr[i·row_stride + k·step]`.
pub(in crate::ops) struct Left<T> {
    pub ptr: *const T,
    pub row_stride: usize,
    pub step: usize,
}

impl<T> Clone for Left<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Left<T> {}

impl<T> Left<T> {
    /// Pointers to every third row of the tile, from which the others are one or two strides away: addresses that an
    /// instruction adds up itself, where a pointer that walks from row to row would be a chain of additions as long as the
    /// products take.
    #[inline(always)]
    fn thirds(self) -> [*const T; 4] {
        [0, 3, 6, 9].map(|row| self.ptr.wrapping_add(row * self.row_stride))
    }
}

/// Panels one after another, `depth` steps of [`NR`] columns each.
pub(in crate::ops) struct Panels<T> {
    pub ptr: *const T,
    /// Steps per panel in memory.
    pub depth: usize,
}

impl<T> Clone for Panels<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Panels<T> {}

/// Where and how a tile's result goes.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Store {
    pub c: *mut f32,
    /// Distance of rows.
    pub stride: usize,
    /// Columns, at most `PANELS·NR`.
    pub width: usize,
    pub scale: f32,
    /// Add to what is there.
    pub add: bool,
}

/// One tile of `height` rows by as many panels as `store.width` needs, over `depth` steps.
///
/// It may be called if `left` holds `height` rows of `depth` steps, `right` the panels, and `width` columns of `height` rows
/// lie inside the result; and with a `height` of at most [`rows_per_tile`].
pub(super) type TileFn<T> = unsafe fn(usize, usize, Left<T>, Panels<T>, Store);

impl Store {
    /// The panels of a tile one by one: the distance of each from the first in columns, and where it goes.
    fn panels(self) -> impl Iterator<Item = (usize, Self)> {
        (0..self.width).step_by(NR).map(move |first| {
            let c = self.c.wrapping_add(first);
            (first, Self { c, width: (self.width - first).min(NR), ..self })
        })
    }
}

impl<T> Panels<T> {
    /// Where the panel of column `first` begins.
    fn at(self, first: usize) -> *const T {
        self.ptr.wrapping_add(first * self.depth)
    }
}

/// The tile in single precision for this machine's vectors.
pub(super) fn tile_f32() -> TileFn<f32> {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        return avx512::tile_f32;
    } else if has_avx2() {
        return avx2::tile_f32;
    }
    portable_f32
}

/// One tile of bf16 pairs: a step is two neighbours along `k`.
///
/// # Safety
/// As [`TileFn`]; AVX512-BF16 is there.
pub(super) unsafe fn tile_bf16(height: usize, depth: usize, left: Left<u32>, right: Panels<u32>, store: Store) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as promised by the caller.
    unsafe {
        avx512::tile_bf16(height, depth, left, right, store)
    };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("bf16 tiles need AVX512-BF16: {height} {depth} {:?} {:?} {:?}", left.ptr, right.ptr, store.c);
}

/// The tile with whatever vectors the program was built for.
unsafe fn portable_f32(height: usize, depth: usize, left: Left<f32>, right: Panels<f32>, store: Store) {
    for (first, store) in store.panels() {
        let panel = right.at(first);
        // SAFETY: passed on from the caller.
        unsafe {
            match height {
                1 => portable::<1>(depth, left, panel, store),
                2 => portable::<2>(depth, left, panel, store),
                3 => portable::<3>(depth, left, panel, store),
                4 => portable::<4>(depth, left, panel, store),
                5 => portable::<5>(depth, left, panel, store),
                _ => portable::<6>(depth, left, panel, store),
            }
        }
    }
}

unsafe fn portable<const ROWS: usize>(depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
    let mut acc = [[0.0f32; NR]; ROWS];
    for k in 0..depth {
        // SAFETY: the panel holds `depth` steps of `NR` values, `left` the tile's rows.
        unsafe {
            let b = &*panel.add(k * NR).cast::<[f32; NR]>();
            for (i, row) in acc.iter_mut().enumerate() {
                let x = *left.ptr.add(i * left.row_stride + k * left.step);
                for (v, b) in row.iter_mut().zip(b) {
                    *v = x.mul_add(*b, *v);
                }
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: `width` columns of the tile's row `i` lie inside the result.
        let out = unsafe { std::slice::from_raw_parts_mut(store.c.add(i * store.stride), store.width) };
        for (c, v) in out.iter_mut().zip(row) {
            *c = if store.add { v.mul_add(store.scale, *c) } else { v * store.scale };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Left, NR, Panels, Store};

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile_f32(height: usize, depth: usize, left: Left<f32>, right: Panels<f32>, store: Store) {
        for (first, store) in store.panels() {
            let panel = right.at(first);
            // SAFETY: passed on from the caller.
            unsafe {
                match height {
                    1 => inner::<1>(depth, left, panel, store),
                    2 => inner::<2>(depth, left, panel, store),
                    3 => inner::<3>(depth, left, panel, store),
                    4 => inner::<4>(depth, left, panel, store),
                    5 => inner::<5>(depth, left, panel, store),
                    _ => inner::<6>(depth, left, panel, store),
                }
            }
        }
    }

    /// Twelve accumulators, two registers of columns and one of a row's value: fifteen of the sixteen there are.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn inner<const ROWS: usize>(depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
        let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (left.thirds(), panel);
        for _ in 0..depth {
            // SAFETY: the panel holds `depth` steps of `NR` values, `left` the tile's rows.
            unsafe {
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*a[i / 3].add(i % 3 * left.row_stride));
                    row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                    row[1] = _mm256_fmadd_ps(x, b1, row[1]);
                }
            }
            a = a.map(|a| a.wrapping_add(left.step));
            b = b.wrapping_add(NR);
        }
        if store.width == NR {
            // SAFETY: sixteen columns of `ROWS` rows lie inside the result.
            unsafe { write(acc, store) };
            return;
        }
        // At the edge through rows of its own: masked stores are slow on some processors.
        let mut edge = [[0.0f32; NR]; ROWS];
        let row = |i: usize| store.c.wrapping_add(i * store.stride);
        // SAFETY: `width` columns of `ROWS` rows lie inside the result, and `edge` has all.
        unsafe {
            if store.add {
                for (i, edge) in edge.iter_mut().enumerate() {
                    std::ptr::copy_nonoverlapping(row(i), edge.as_mut_ptr(), store.width);
                }
            }
            write(acc, Store { c: edge.as_mut_ptr().cast(), stride: NR, ..store });
            for (i, edge) in edge.iter().enumerate() {
                std::ptr::copy_nonoverlapping(edge.as_ptr(), row(i), store.width);
            }
        }
    }

    /// Writes whole rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn write<const ROWS: usize>(acc: [[__m256; 2]; ROWS], store: Store) {
        let scale = _mm256_set1_ps(store.scale);
        for (i, row) in acc.into_iter().enumerate() {
            for (half, v) in row.into_iter().enumerate() {
                let c = store.c.wrapping_add(i * store.stride + 8 * half);
                // SAFETY: promised by the caller.
                unsafe {
                    let there = if store.add { _mm256_loadu_ps(c) } else { _mm256_setzero_ps() };
                    let v = if store.add { _mm256_fmadd_ps(v, scale, there) } else { _mm256_mul_ps(v, scale) };
                    _mm256_storeu_ps(c, v);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Left, NR, Panels, Store};

    macro_rules! tile {
        ($name:ident, $two:ident, $one:ident, $lane:ty, $features:literal, $load:expr, $splat:expr, $fma:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                height: usize,
                depth: usize,
                left: Left<$lane>,
                right: Panels<$lane>,
                store: Store,
            ) {
                macro_rules! rows {
                    ($inner:ident) => {
                        match height {
                            1 => $inner::<1>(depth, left, right, store),
                            2 => $inner::<2>(depth, left, right, store),
                            3 => $inner::<3>(depth, left, right, store),
                            4 => $inner::<4>(depth, left, right, store),
                            5 => $inner::<5>(depth, left, right, store),
                            6 => $inner::<6>(depth, left, right, store),
                            7 => $inner::<7>(depth, left, right, store),
                            8 => $inner::<8>(depth, left, right, store),
                            9 => $inner::<9>(depth, left, right, store),
                            10 => $inner::<10>(depth, left, right, store),
                            11 => $inner::<11>(depth, left, right, store),
                            _ => $inner::<12>(depth, left, right, store),
                        }
                    };
                }
                // SAFETY: passed on from the caller.
                unsafe { if store.width > NR { rows!($two) } else { rows!($one) } }
            }

            tile!(@inner $two, 2, $lane, $features, $load, $splat, $fma);
            tile!(@inner $one, 1, $lane, $features, $load, $splat, $fma);
        };
        (@inner $inner:ident, $panels:literal, $lane:ty, $features:literal, $load:expr, $splat:expr, $fma:expr) => {
            #[target_feature(enable = $features)]
            unsafe fn $inner<const ROWS: usize>(depth: usize, left: Left<$lane>, right: Panels<$lane>, store: Store) {
                let mut acc = [[_mm512_setzero_ps(); $panels]; ROWS];
                let (mut a, mut b) = (left.thirds(), right.ptr);
                let apart = right.depth * NR;
                for _ in 0..depth {
                    // SAFETY: each panel holds `depth` steps of `NR` lanes; `left` holds `ROWS` rows of them.
                    unsafe {
                        let mut columns = [$load(b); $panels];
                        for (p, column) in columns.iter_mut().enumerate().skip(1) {
                            *column = $load(b.add(p * apart));
                        }
                        for (i, row) in acc.iter_mut().enumerate() {
                            let x = $splat(*a[i / 3].add(i % 3 * left.row_stride));
                            for (v, column) in row.iter_mut().zip(columns) {
                                *v = $fma(*v, x, column);
                            }
                        }
                    }
                    a = a.map(|a| a.wrapping_add(left.step));
                    b = b.wrapping_add(NR);
                }
                let scale = _mm512_set1_ps(store.scale);
                for (i, row) in acc.iter().enumerate() {
                    for (p, v) in row.iter().enumerate() {
                        let m = mask(store.width - p * NR);
                        // SAFETY: the mask keeps to the `width` columns of row `i`, which lie inside the result.
                        unsafe {
                            let c = store.c.wrapping_add(i * store.stride + p * NR);
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
        if width >= NR { u16::MAX } else { (1 << width) - 1 }
    }

    tile!(
        tile_f32,
        two_f32,
        one_f32,
        f32,
        "avx512f,avx512vl",
        |p| _mm512_loadu_ps(p),
        |x| _mm512_set1_ps(x),
        |c, x, b| _mm512_fmadd_ps(x, b, c)
    );
    tile!(
        tile_bf16,
        two_bf16,
        one_bf16,
        u32,
        "avx512f,avx512vl,avx512bf16",
        |p: *const u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())),
        |x: u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32)),
        |c, x, b| _mm512_dpbf16_ps(c, x, b)
    );
}
