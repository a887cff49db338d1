//! Rows of a table, by index.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::{Elems, Tensor, Weight};
use crate::ops::rows_per_task;

/// `y[i] = table[ids[i]]`, widened to single precision. `table` `[rows, d]`; returns `[ids, d]`.
pub fn forward(ids: &[u32], table: &Weight) -> Tensor {
    let (rows, d) = (table.dim(0), table.dim(1));
    let mut y = Tensor::scratch(&[ids.len(), d]);
    let out = y.data_mut().par_chunks_exact_mut(d).zip(ids);
    out.with_min_len(rows_per_task(d)).for_each(|(y, &id)| {
        let id = id as usize;
        assert!(id < rows, "embedding: row {id} of {rows}");
        match table.elems().slice(id * d..(id + 1) * d) {
            Elems::F32(x) => y.copy_from_slice(x),
            Elems::F16(x) => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32()),
            Elems::Bf16(x) => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32()),
        }
    });
    y
}
