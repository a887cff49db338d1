//! Rows of a table, by index.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Tensor, Weight};

/// `y[i] = table[ids[i]]`, widened to single precision. `table` `[rows, d]`; returns `[ids, d]`.
pub fn forward(ids: &[u32], table: &Weight) -> Tensor {
    cpu::forward(ids, table)
}
