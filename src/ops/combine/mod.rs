//! The gradient of a loss to the velocity, of which the coefficients of a few differences are all that is not known.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use super::products::Difference;
use crate::device::Tensor;

/// `(1/D)·Σ_k coefficients[k][row]·d_k` for each row of `D` elements, summed in f64 and rounded once. Returns the shape of
/// the operands.
pub fn forward(differences: &[Difference], coefficients: &[Vec<f64>]) -> Tensor {
    let first = Difference::check(differences);
    let fits = coefficients.len() == differences.len() && coefficients.iter().all(|c| c.len() == first.dim(0));
    assert!(fits, "combine: coefficients of {} differences of {first:?}", differences.len());
    let mut out = first.scratch_like(first.shape());
    dispatch!(first, forward(&mut out, differences, coefficients));
    out
}
