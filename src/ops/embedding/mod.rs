//! Rows of a table, by index.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::{dequantise, dispatch};
use crate::device::Tensor;
use crate::device::work::Work;

/// `y[i] = table[ids[i]]`, widened or decoded to single precision. `table` `[rows, d]`; returns `[ids, d]`.
pub fn forward(ids: &[u32], table: &Tensor) -> Tensor {
    let (rows, d) = (table.dim(0), table.dim(1));
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        panic!("embedding: row {id} of {rows}");
    }
    let mut y = Tensor::scratch(&table.device(), &[ids.len(), d]);
    dispatch!(table, forward(&mut y, ids, table), [Work::stream(table.dtype().bytes(y.len()), y.bytes())]);
    y
}

/// `y[c][i] = table[ids[i]][c]`: the same, one column of the table after another. Returns `[d, ids]`.
pub fn by_column(ids: &[u32], table: &Tensor) -> Tensor {
    let (rows, d) = (table.dim(0), table.dim(1));
    assert!(ids.iter().all(|id| (*id as usize) < rows), "embedding: a row beyond the {rows} of {table:?}");
    let table = &dequantise::forward(table);
    let mut y = Tensor::scratch(&table.device(), &[d, ids.len()]);
    dispatch!(table, by_column(&mut y, ids, table), [Work::stream(y.bytes(), y.bytes())]);
    y
}
