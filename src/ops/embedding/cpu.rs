use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::rows_per_task;

pub(super) fn forward(y: &mut Tensor, ids: &[u32], table: &Tensor) {
    let d = table.dim(1);
    let out = y.host_mut().par_chunks_exact_mut(d).zip(ids);
    out.with_min_len(rows_per_task(d)).for_each(|(y, &id)| {
        let row = table.slice(id as usize..id as usize + 1);
        match row.blocks() {
            Some((blocks, bytes, scale)) => blocks.decode(bytes, scale, y),
            None => row.elems().widen_into(y),
        }
    });
}

pub(super) fn by_column(y: &mut Tensor, ids: &[u32], table: &Tensor) {
    let d = table.dim(1);
    let table = table.elems().to_f32();
    y.host_mut().par_chunks_exact_mut(ids.len().max(1)).enumerate().for_each(|(c, y)| {
        y.iter_mut().zip(ids).for_each(|(y, id)| *y = table[*id as usize * d + c]);
    });
}
