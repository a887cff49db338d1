//! Rotary position embedding (Su et al. 2021) as LLaMA has it. On the processor only: no kernel has been written for it.

mod cpu;
#[cfg(test)]
mod tests;

use super::on_cpu;
use crate::device::Tensor;

/// Turns each pair of elements `i` and `i + d/2` of a head by `position·theta^(-2i/d)`, in place. `x` `[b, n, heads·d]`, whose tokens
/// are at the positions from 0 on.
pub fn forward(x: &mut Tensor, heads: usize, theta: f32) {
    let fits = x.shape().len() == 3 && heads > 0 && x.dim(2).is_multiple_of(2 * heads);
    assert!(fits, "rope: {heads} heads of {x:?}");
    on_cpu!(x, forward(x, heads, theta));
}
