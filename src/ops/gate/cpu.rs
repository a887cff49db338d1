use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{chunk, rows_per_task};

pub(super) fn forward(x: &mut Tensor, y: &Tensor, modulation: &Tensor, gate: usize) {
    let (n, d) = (x.dim(1), x.dim(2));
    let rows = x.data_mut().par_chunks_exact_mut(d).zip(y.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (x, y))| {
        for ((x, y), gate) in x.iter_mut().zip(y).zip(chunk(modulation, i / n, gate, d)) {
            *x += gate * y;
        }
    });
}

pub(super) fn backward(dx: &Tensor, modulation: &Tensor, gate: usize) -> Tensor {
    let (n, d) = (dx.dim(1), dx.dim(2));
    let mut dy = Tensor::scratch(dx.shape());
    let rows = dy.data_mut().par_chunks_exact_mut(d).zip(dx.data().par_chunks_exact(d)).enumerate();
    rows.with_min_len(rows_per_task(d)).for_each(|(i, (dy, dx))| {
        for ((dy, dx), gate) in dy.iter_mut().zip(dx).zip(chunk(modulation, i / n, gate, d)) {
            *dy = gate * dx;
        }
    });
    dy
}
