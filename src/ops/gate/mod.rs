//! The gate of adaptive layer norm blocks, `x += gate·y`, whose forward is an epilogue of [`linear`](super::linear).

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::adaln::Chunk;
use super::dispatch;
use crate::device::Tensor;

/// The gradient to `y`: `dy = gate·dx`. The gradient to `x` is `dx` itself. `dx` `[b, n, d]`.
pub fn backward(dx: &Tensor, gate: Chunk) -> Tensor {
    gate.check(dx.dim(0), dx.dim(2));
    let mut dy = dx.scratch_like(dx.shape());
    dispatch!(dx, backward(&mut dy, dx, gate));
    dy
}
