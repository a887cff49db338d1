//! Inner products of differences of tensors: all that the loss of an algorithm needs to know of its velocities.
//!
//! A difference is taken elementwise in f32 before anything is multiplied, so that two near velocities lose nothing.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cuda::Terms;

use super::dispatch;
use crate::device::Tensor;

/// Most terms of a difference, and most differences at once.
pub const MOST: usize = 4;

/// One factor per row, or one for all.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// The same everywhere.
    All(f32),
    /// Each row's own.
    Rows(&'a [f32]),
}

/// `Σ weight·operand`, added up in the order it is written in; at most four terms of equal shapes `[rows, ..]`.
#[derive(Clone, Debug)]
pub struct Difference<'a> {
    /// Weights and operands.
    pub terms: Vec<(Weights<'a>, &'a Tensor)>,
}

impl Difference<'_> {
    pub(in crate::ops) fn check(differences: &[Self]) -> &Tensor {
        let first = differences[0].terms[0].1;
        assert!(differences.len() <= MOST, "{} differences, at most {MOST}", differences.len());
        for Self { terms } in differences {
            assert!((1..=MOST).contains(&terms.len()), "{} terms, 1 to {MOST}", terms.len());
            for (weights, operand) in terms {
                let fits = !matches!(weights, Weights::Rows(w) if w.len() != first.dim(0));
                assert!(
                    fits && operand.shape() == first.shape(),
                    "difference of {operand:?} and {first:?}: {weights:?}"
                );
            }
        }
        first
    }
}

/// What is known of the differences of one row with `D` elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Products {
    /// `⟨d_i, d_j⟩ = (1/D)·Σ d_i·d_j`, symmetric.
    pub gram: [[f64; MOST]; MOST],
    /// `|d_i|₁ = (1/D)·Σ|d_i|`.
    pub l1: [f64; MOST],
}

/// The products of the differences of each row: products of f32 and sums in f64, in an order that depends on the row's
/// length alone.
pub fn forward(differences: &[Difference]) -> Vec<Products> {
    let first = Difference::check(differences);
    let mut out = vec![Products::default(); first.dim(0)];
    dispatch!(first, forward(&mut out, differences));
    out
}
