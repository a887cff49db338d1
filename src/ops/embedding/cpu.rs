use rayon::prelude::*;

use crate::device::{Tensor, Weight};
use crate::ops::cpu::rows_per_task;

pub(super) fn forward(ids: &[u32], table: &Weight) -> Tensor {
    let (rows, d) = (table.dim(0), table.dim(1));
    let mut y = Tensor::scratch(&[ids.len(), d]);
    let out = y.data_mut().par_chunks_exact_mut(d).zip(ids);
    out.with_min_len(rows_per_task(d)).for_each(|(y, &id)| {
        let id = id as usize;
        assert!(id < rows, "embedding: row {id} of {rows}");
        table.elems().slice(id * d..(id + 1) * d).widen_into(y);
    });
    y
}
