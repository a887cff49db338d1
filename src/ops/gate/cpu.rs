use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::adaln::Chunk;
use crate::ops::cpu::rows_per_task;

pub(super) fn backward(dy: &mut Tensor, dx: &Tensor, gate: Chunk) {
    let (n, d) = (dx.dim(1), dx.dim(2));
    let rows = dy.host_mut().par_chunks_exact_mut(d).zip(dx.host().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (dy, dx))| {
        for ((dy, dx), gate) in dy.iter_mut().zip(dx).zip(gate.of(i / n, d)) {
            *dy = gate * dx;
        }
    });
}
