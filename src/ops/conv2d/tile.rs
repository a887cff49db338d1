//! The inner loop: up to 12 output channels by 32 windows held in registers.

/// Windows per tile: two 512-bit registers.
pub(super) const LANES: usize = 32;
/// Output channels per tile.
pub(super) const ROWS: usize = 12;

/// Which windows a tile covers and which of them are kept, packed, where in the output plane.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// Number of the first window.
    pub first: usize,
    /// Position in the output plane of the first kept window of each half.
    pub start: [usize; 2],
    /// Bit per window that is kept.
    pub keep: [u16; 2],
}

/// One chunk of the chains of one tile.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// The laid-out image, at the tile's first window.
    pub input: *const f32,
    /// Where each step of the chunk reads, from `input`.
    pub offsets: &'a [usize],
    /// The first output channel's weight at the chunk's first step.
    pub weight: *const f32,
    /// Distance of output channels in the weight.
    pub weight_stride: usize,
    /// One value per output channel to add, or null.
    pub bias: *const f32,
    /// Planes to add, laid out as `out`, or null; may be `out`.
    pub add: *const f32,
    /// The first output channel's plane.
    pub out: *mut f32,
    /// Distance of planes.
    pub out_stride: usize,
    pub span: Span,
}

/// Runs `rows` (at most [`ROWS`]) output channels of `tile`.
///
/// # Safety
/// Every offset plus [`LANES`] must lie inside the laid-out image, every kept window inside the planes of `add`
/// and `out`, and weight and bias must hold `rows` channels.
pub(super) unsafe fn run(rows: usize, tile: Tile) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there; the rest is the caller's promise.
        unsafe { avx512::run(rows, tile) };
        return;
    }
    // Without 32 wide registers, three rows at a time fill what there is; the chain per element is the same.
    for i in (0..rows).step_by(3) {
        // SAFETY: rows `i..` are part of the tile.
        unsafe {
            let tile = tile.skip(i);
            match rows - i {
                1 => portable::<1>(tile),
                2 => portable::<2>(tile),
                _ => portable::<3>(tile),
            }
        }
    }
}

impl Tile<'_> {
    /// The tile without its first `i` output channels.
    unsafe fn skip(self, i: usize) -> Self {
        // SAFETY: the caller's `i` is below the tile's number of rows.
        unsafe {
            Self {
                weight: self.weight.add(i * self.weight_stride),
                bias: if self.bias.is_null() { self.bias } else { self.bias.add(i) },
                add: if self.add.is_null() { self.add } else { self.add.add(i * self.out_stride) },
                out: self.out.add(i * self.out_stride),
                ..self
            }
        }
    }
}

pub(super) unsafe fn portable<const N: usize>(tile: Tile) {
    let mut acc = [[0.0f32; LANES]; N];
    for (k, offset) in tile.offsets.iter().enumerate() {
        // SAFETY: see `run`.
        unsafe {
            let x = tile.input.add(*offset).cast::<[f32; LANES]>().read_unaligned();
            for (i, row) in acc.iter_mut().enumerate() {
                let w = *tile.weight.add(i * tile.weight_stride + k);
                row.iter_mut().zip(&x).for_each(|(v, x)| *v = w.mul_add(*x, *v));
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: see `run`.
        unsafe {
            let tile = tile.skip(i);
            for (half, lanes) in row.chunks_exact(LANES / 2).enumerate() {
                let kept = (0..LANES / 2).filter(|lane| tile.span.keep[half] >> lane & 1 == 1);
                for (at, lane) in (tile.span.start[half]..).zip(kept) {
                    let mut v = lanes[lane];
                    if !tile.bias.is_null() {
                        v += *tile.bias;
                    }
                    if !tile.add.is_null() {
                        v += *tile.add.add(at);
                    }
                    *tile.out.add(at) = v;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::Tile;

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn run(rows: usize, tile: Tile) {
        // SAFETY: passed on from the caller.
        unsafe {
            match rows {
                1 => inner::<1>(tile),
                2 => inner::<2>(tile),
                3 => inner::<3>(tile),
                4 => inner::<4>(tile),
                5 => inner::<5>(tile),
                6 => inner::<6>(tile),
                7 => inner::<7>(tile),
                8 => inner::<8>(tile),
                9 => inner::<9>(tile),
                10 => inner::<10>(tile),
                11 => inner::<11>(tile),
                _ => inner::<12>(tile),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn inner<const N: usize>(tile: Tile) {
        let mut acc = [[_mm512_setzero_ps(); 2]; N];
        let mut left = tile.weight;
        for offset in tile.offsets {
            // SAFETY: see `super::run`.
            unsafe {
                let x = tile.input.add(*offset);
                let (x0, x1) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
                for (i, row) in acc.iter_mut().enumerate() {
                    let w = _mm512_set1_ps(*left.add(i * tile.weight_stride));
                    row[0] = _mm512_fmadd_ps(w, x0, row[0]);
                    row[1] = _mm512_fmadd_ps(w, x1, row[1]);
                }
            }
            left = left.wrapping_add(1);
        }
        for (i, row) in acc.into_iter().enumerate() {
            // SAFETY: see `super::run`; the mask keeps to the kept windows.
            unsafe {
                let tile = tile.skip(i);
                for (half, mut v) in row.into_iter().enumerate() {
                    let (at, keep) = (tile.span.start[half], tile.span.keep[half]);
                    let packed = ((1u32 << keep.count_ones()) - 1) as __mmask16;
                    v = _mm512_maskz_compress_ps(keep, v);
                    if !tile.bias.is_null() {
                        v = _mm512_add_ps(v, _mm512_set1_ps(*tile.bias));
                    }
                    if !tile.add.is_null() {
                        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(packed, tile.add.add(at)));
                    }
                    _mm512_mask_storeu_ps(tile.out.add(at), packed, v);
                }
            }
        }
    }
}
