//! The gated residual of adaptive layer norm blocks: `x += gate·y`.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// `x += gate·y`. `x`, `y` `[b, n, d]`; `modulation` `[b, chunks·d]`, of which chunk `gate` is used.
pub fn forward(x: &mut Tensor, y: &Tensor, modulation: &Tensor, gate: usize) {
    assert_eq!(x.shape(), y.shape(), "gate");
    cpu::forward(x, y, modulation, gate);
}

/// The gradient to `y`: `dy = gate·dx`. The gradient to `x` is `dx` itself.
pub fn backward(dx: &Tensor, modulation: &Tensor, gate: usize) -> Tensor {
    cpu::backward(dx, modulation, gate)
}
