//! What the processor's rooms share.

pub mod gemm;

use crate::device::Tensor;

/// Rows of width `d` that are worth a task of their own.
pub(crate) fn rows_per_task(d: usize) -> usize {
    (1 << 14) / d.max(1) + 1
}

/// Chunk `index` of row `row` of a modulation tensor `[b, chunks·d]`.
pub(crate) fn chunk(modulation: &Tensor, row: usize, index: usize, d: usize) -> &[f32] {
    &modulation.data()[row * modulation.width() + index * d..][..d]
}

/// Lanes that a sum is spread over, so that it vectorises; part of the definition of the result.
const LANES: usize = 16;

/// `Σ f(xᵢ)` in a fixed order: lane sums first, then across lanes.
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
