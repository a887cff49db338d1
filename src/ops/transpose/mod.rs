//! The last two axes exchanged.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;

/// `[b, m, n]` to `[b, n, m]`.
pub fn forward(x: &Tensor) -> Tensor {
    cpu::forward(x)
}
