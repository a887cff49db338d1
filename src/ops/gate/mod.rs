//! The gated residual of adaptive layer norm blocks: `x += gate·y`.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::{chunk, rows_per_task};

/// `x += gate·y`. `x`, `y` `[b, n, d]`; `modulation` `[b, chunks·d]`, of which chunk `gate` is used.
pub fn forward(x: &mut Tensor, y: &Tensor, modulation: &Tensor, gate: usize) {
    assert_eq!(x.shape(), y.shape(), "gate");
    let (n, d) = (x.dim(1), x.dim(2));
    let rows = x.data_mut().par_chunks_exact_mut(d).zip(y.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (x, y))| {
        for ((x, y), gate) in x.iter_mut().zip(y).zip(chunk(modulation, i / n, gate, d)) {
            *x += gate * y;
        }
    });
}

/// The gradient to `y`: `dy = gate·dx`. The gradient to `x` is `dx` itself.
pub fn backward(dx: &Tensor, modulation: &Tensor, gate: usize) -> Tensor {
    let (n, d) = (dx.dim(1), dx.dim(2));
    let mut dy = Tensor::scratch(dx.shape());
    let rows = dy.data_mut().par_chunks_exact_mut(d).zip(dx.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (dy, dx))| {
        for ((dy, dx), gate) in dy.iter_mut().zip(dx).zip(chunk(modulation, i / n, gate, d)) {
            *dy = gate * dx;
        }
    });
    dy
}
