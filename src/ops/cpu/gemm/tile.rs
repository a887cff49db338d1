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
    /// The tile without its first `rows` rows.
    ///
    /// # Safety
    /// There are as many.
    unsafe fn skip(self, rows: usize) -> Self {
        // SAFETY: promised by the caller.
        Self { ptr: unsafe { self.ptr.add(rows * self.row_stride) }, ..self }
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

pub(super) type TileFn<T> = unsafe fn(usize, usize, Left<T>, Panels<T>, Store);

/// One tile of `height` rows by as many panels as `store.width` needs, over `depth` steps, in single precision.
///
/// # Safety
/// `left` holds `height` rows of `depth` steps, `right` the panels, and `width` columns of `height` rows lie inside the
/// result.
pub(in crate::ops) unsafe fn tile_f32(height: usize, depth: usize, left: Left<f32>, right: Panels<f32>, store: Store) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the feature is there; pointers as promised by the caller.
        unsafe { avx512::tile_f32(height, depth, left, right, store) };
        return;
    }
    let narrow = |first: usize, left: Left<f32>, height: usize, store: Store| {
        // SAFETY: a part of the tile.
        unsafe {
            let right = Panels { ptr: right.ptr.add(first / NR * right.depth * NR), ..right };
            let store = Store { c: store.c.add(first), width: (store.width - first).min(NR), ..store };
            #[cfg(target_arch = "x86_64")]
            if has_avx2() {
                avx2::tile(height, depth, left, right.ptr, store);
                return;
            }
            portable_rows(height, depth, left, right.ptr, store);
        }
    };
    for i in (0..height).step_by(6) {
        // SAFETY: rows `i..` are part of the tile.
        let (left, store) = unsafe { (left.skip(i), Store { c: store.c.add(i * store.stride), ..store }) };
        for first in (0..store.width).step_by(NR) {
            narrow(first, left, (height - i).min(6), store);
        }
    }
}

/// One tile of bf16 pairs: a step is two neighbours along `k`.
///
/// # Safety
/// As [`tile_f32`]; AVX512-BF16 is there.
pub(super) unsafe fn tile_bf16(height: usize, depth: usize, left: Left<u32>, right: Panels<u32>, store: Store) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as promised by the caller.
    unsafe {
        avx512::tile_bf16(height, depth, left, right, store)
    };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("bf16 tiles need AVX512-BF16: {height} {depth} {:?} {:?} {:?}", left.ptr, right.ptr, store.c);
}

/// Up to six rows by one panel with whatever vectors the program was built for.
unsafe fn portable_rows(height: usize, depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
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

pub(super) unsafe fn portable<const ROWS: usize>(depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
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

    use super::{Left, NR, Store};

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile(height: usize, depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
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

    /// Twelve accumulators, two registers of columns and one of a row's value: fifteen of the sixteen there are.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn inner<const ROWS: usize>(depth: usize, left: Left<f32>, panel: *const f32, store: Store) {
        let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut a, mut b) = (left.ptr, panel);
        for _ in 0..depth {
            // SAFETY: the panel holds `depth` steps of `NR` values, `left` the tile's rows.
            unsafe {
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*a.add(i * left.row_stride));
                    row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                    row[1] = _mm256_fmadd_ps(x, b1, row[1]);
                }
            }
            a = a.wrapping_add(left.step);
            b = b.wrapping_add(NR);
        }
        let scale = _mm256_set1_ps(store.scale);
        for (i, row) in acc.into_iter().enumerate() {
            let c = store.c.wrapping_add(i * store.stride);
            let mut edge = [0.0f32; NR];
            // A tile at the edge goes through a row of its own: masked stores are slow on some processors.
            let at = if store.width == NR { c } else { edge.as_mut_ptr() };
            // SAFETY: `width` columns of row `i` lie inside the result, and `edge` has all.
            unsafe {
                if store.add && store.width < NR {
                    std::ptr::copy_nonoverlapping(c, at, store.width);
                }
                for (half, v) in row.into_iter().enumerate() {
                    let at = at.add(8 * half);
                    let v = if store.add {
                        _mm256_fmadd_ps(v, scale, _mm256_loadu_ps(at))
                    } else {
                        _mm256_mul_ps(v, scale)
                    };
                    _mm256_storeu_ps(at, v);
                }
                if store.width < NR {
                    std::ptr::copy_nonoverlapping(at, c, store.width);
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
                let (mut a, mut b) = (left.ptr, right.ptr);
                let apart = right.depth * NR;
                for _ in 0..depth {
                    // SAFETY: each panel holds `depth` steps of `NR` lanes; `left` holds `ROWS` rows of them.
                    unsafe {
                        let mut columns = [$load(b); $panels];
                        for (p, column) in columns.iter_mut().enumerate().skip(1) {
                            *column = $load(b.add(p * apart));
                        }
                        for (i, row) in acc.iter_mut().enumerate() {
                            let x = $splat(*a.add(i * left.row_stride));
                            for (v, column) in row.iter_mut().zip(columns) {
                                *v = $fma(*v, x, column);
                            }
                        }
                    }
                    a = a.wrapping_add(left.step);
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
