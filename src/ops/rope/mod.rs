//! Rotary position embedding (Su et al. 2021) as LLaMA has it.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// Most positions there are: so far, angles in single precision mean something.
const POSITIONS: usize = 1 << 16;

/// Turns each pair of elements `i` and `i + d/2` of a head by `position·theta^(-2i/d)`, in place. `x` `[b, n, heads·d]`, whose tokens
/// are at the positions from 0 on.
pub fn forward(x: &mut Tensor, heads: usize, theta: f32) {
    let fits = x.shape().len() == 3 && heads > 0 && x.dim(2).is_multiple_of(2 * heads) && x.dim(1) <= POSITIONS;
    assert!(fits, "rope: {heads} heads of {x:?}");
    dispatch!(x, forward(x, heads, theta));
}

/// How far each of `half` pairs is turned from one position to the next.
fn speeds(half: usize, theta: f32) -> Vec<f32> {
    (0..half).map(|i| f64::from(theta).powf(-(i as f64) / half as f64) as f32).collect()
}
