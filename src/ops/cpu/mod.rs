//! What the processor's rooms share.

pub mod gemm;

use crate::device::workers;

/// A buffer of which tasks write different parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    ptr: *mut f32,
    len: usize,
}
// SAFETY: whoever takes a part promises that it is nobody else's.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(buffer: &mut [f32]) -> Self {
        Self { ptr: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// The `len` elements from `first` on.
    ///
    /// # Safety
    /// The buffer is still there, and nobody else has these elements meanwhile.
    pub(crate) unsafe fn slice<'a>(self, first: usize, len: usize) -> &'a mut [f32] {
        assert!(first + len <= self.len, "elements {first}..{} of {}", first + len, self.len);
        // SAFETY: inside the buffer; the rest is promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(first), len) }
    }

    /// A pointer to element `first`, for rows that are apart.
    pub(crate) fn at(self, first: usize) -> *mut f32 {
        assert!(first <= self.len, "element {first} of {}", self.len);
        self.ptr.wrapping_add(first)
    }
}

/// Rows of width `d` that are worth a task of their own.
pub(crate) fn rows_per_task(d: usize) -> usize {
    at_least((1 << 14) / d.max(1) + 1)
}

/// The least length of a task: `n`, or everything where there is nobody to divide the work with.
pub(crate) fn at_least(n: usize) -> usize {
    if workers() == 1 { usize::MAX } else { n }
}

/// `x`, what there is per channel, as often in a row as makes loops over several pixels worth their while.
pub(crate) fn repeated(x: &[f32]) -> Vec<f32> {
    const WORTHWHILE: usize = 256;
    x.repeat(WORTHWHILE.div_ceil(x.len().max(1)))
}

/// Lanes that a sum is spread over, so that it vectorises; part of the definition of the result.
const LANES: usize = 16;

/// `Σ f(xᵢ)` in a fixed order: lane sums first, then across lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        for (l, v) in lanes.iter_mut().zip(c) {
            *l += f(*v);
        }
    }
    for (l, v) in lanes.iter_mut().zip(rest) {
        *l += f(*v);
    }
    lanes.iter().sum()
}

/// `Σ xᵢ·yᵢ` in the order of [`sum`].
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((l, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *l = x.mul_add(*y, *l);
        }
    }
    for (l, (x, y)) in lanes.iter_mut().zip(rest) {
        *l = x.mul_add(*y, *l);
    }
    lanes.iter().sum()
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Vec<Vec<f32>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Runs `f` with `len` floats of arbitrary content that stay with the thread; calls may be nested.
pub(crate) fn scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut buffer = SCRATCH.with_borrow_mut(|free| {
        // The smallest that is large enough, or else the largest, to grow.
        let fits = (0..free.len()).filter(|i| free[*i].len() >= len).min_by_key(|i| free[*i].len());
        let best = fits.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()));
        best.map_or_else(Vec::new, |i| free.swap_remove(i))
    });
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    SCRATCH.with_borrow_mut(|free| free.push(buffer));
    result
}

/// `Σ f(i)` for `i < n` in the order in which a block of 256 threads adds: a thread adds four neighbours, the lanes of a
/// warp are added by halves, warps one after another, and so are chunks of 1024.
pub(crate) fn ordered_sum(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut total = 0.0;
    for chunk in (0..n).step_by(1024) {
        let mut of_chunk = 0.0;
        for warp in (chunk..n.min(chunk + 1024)).step_by(128) {
            let mut lanes = [0.0; 32];
            for (i, lane) in lanes.iter_mut().enumerate() {
                let first = warp + 4 * i;
                (first..n.min(first + 4)).for_each(|i| *lane += f(i));
            }
            for half in [16, 8, 4, 2, 1] {
                (0..half).for_each(|i| lanes[i] += lanes[i + half]);
            }
            of_chunk += lanes[0];
        }
        total += of_chunk;
    }
    total
}
