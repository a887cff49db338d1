use std::sync::Arc;

use super::{Difference, MOST, Products, Weights};
use crate::device::gpu::{Gpu, Grid, Results, Table, type_code};

/// What kernels/common/difference.cuh reads.
pub(in crate::ops) struct Terms {
    /// For each difference its operands and their types, up to a null one.
    pub(in crate::ops) operands: Table,
    /// For each row and difference the factors of its terms.
    pub(in crate::ops) weights: Table,
}

impl Terms {
    pub(in crate::ops) fn of(gpu: &Arc<Gpu>, differences: &[Difference]) -> Self {
        let rows = differences[0].terms[0].1.dim(0);
        let mut operands = vec![[0u64; 2]; differences.len() * MOST];
        let mut weights = vec![0.0f32; rows * differences.len() * MOST];
        for (i, difference) in differences.iter().enumerate() {
            for (j, (weight, operand)) in difference.terms.iter().enumerate() {
                operands[i * MOST + j] = [operand.address(), type_code(operand.dtype()).into()];
                for (row, all) in weights.chunks_exact_mut(differences.len() * MOST).enumerate() {
                    all[i * MOST + j] = match weight {
                        Weights::All(w) => *w,
                        Weights::Rows(w) => w[row],
                    };
                }
            }
        }
        Self { operands: gpu.table(&operands), weights: gpu.table(&weights) }
    }
}

pub(super) fn forward(out: &mut [Products], differences: &[Difference]) {
    let first = differences[0].terms[0].1;
    let (gpu, n, length) = (first.gpu(), differences.len(), first.len() / out.len().max(1));
    let (chunks, values) = (length.div_ceil(1024), n * (n + 1) / 2 + n);
    let terms = Terms::of(&gpu, differences);
    let sums = Results::<f64>::scratch(&gpu, out.len() * chunks * values);
    let args = [(&sums).into(), (&terms.operands).into(), (&terms.weights).into(), (length as u32).into()];
    gpu.launch("products", &format!("products_forward_{n}"), Grid::of([chunks, out.len(), 1], 256), args);
    let sums = sums.read();
    for (out, sums) in out.iter_mut().zip(sums.chunks((chunks * values).max(1))) {
        let mut means = (0..values).map(|k| sums.iter().skip(k).step_by(values).sum::<f64>() / length as f64);
        let mut next = || means.next().expect("a value for every product");
        for i in 0..n {
            for j in 0..=i {
                out.gram[i][j] = next();
                out.gram[j][i] = out.gram[i][j];
            }
            out.l1[i] = next();
        }
    }
}
