use rayon::prelude::*;

use super::{Difference, MOST, Products, Weights};
use crate::ops::cpu::{ordered_sum, scratch};

impl Difference<'_> {
    /// The difference of row `row` from element `first` on.
    pub(in crate::ops) fn take(&self, out: &mut [f32], row: usize, first: usize) {
        for (i, (weights, operand)) in self.terms.iter().enumerate() {
            let per = operand.len() / operand.dim(0);
            let x = &operand.host()[row * per + first..][..out.len()];
            let w = match weights {
                Weights::All(w) => *w,
                Weights::Rows(w) => w[row],
            };
            if i == 0 {
                out.iter_mut().zip(x).for_each(|(o, x)| *o = w * x);
            } else {
                out.iter_mut().zip(x).for_each(|(o, x)| *o += w * x);
            }
        }
    }
}

pub(super) fn forward(out: &mut [Products], differences: &[Difference]) {
    let operand = differences[0].terms[0].1;
    let per = operand.len() / operand.dim(0).max(1);
    out.par_iter_mut().enumerate().for_each(|(row, out)| {
        scratch(MOST * per, |taken| {
            for (d, taken) in differences.iter().zip(taken.chunks_exact_mut(per)) {
                d.take(taken, row, 0);
            }
            let taken: Vec<&[f32]> = taken.chunks_exact(per).take(differences.len()).collect();
            let mean = |f: &dyn Fn(usize) -> f64| ordered_sum(per, f) / per as f64;
            for (i, a) in taken.iter().enumerate() {
                for (j, b) in taken.iter().enumerate().take(i + 1) {
                    out.gram[i][j] = mean(&|k| f64::from(a[k]) * f64::from(b[k]));
                    out.gram[j][i] = out.gram[i][j];
                }
                out.l1[i] = mean(&|k| f64::from(a[k].abs()));
            }
        });
    });
}
