//! What must be known of a flat buffer of gradients before it is used: how long it is, and whether it is finite.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// The sum of all squares, in f64, in an order that depends on the length alone.
pub fn sum_of_squares(x: &Tensor) -> f64 {
    dispatch!(x, sum_of_squares(x))
}

/// The position and value of the first element that is not a finite number.
pub fn first_non_finite(x: &Tensor) -> Option<(usize, f32)> {
    dispatch!(x, first_non_finite(x))
}
