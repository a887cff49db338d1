use rayon::prelude::*;

use crate::device::Tensor;

/// Elements whose squares are one term: part of the definition of the sum.
const BLOCK: usize = 1 << 12;
/// Partial sums that a block is spread over, so that they vectorise; part of the definition too.
const SUMS: usize = 8;

pub(super) fn sum_of_squares(x: &Tensor) -> f64 {
    let block = |block: &[f32]| -> f64 {
        let mut sums = [0.0f64; SUMS];
        for chunk in block.chunks(SUMS) {
            sums.iter_mut().zip(chunk).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        }
        sums.iter().sum()
    };
    x.host().par_chunks(BLOCK).map(block).collect::<Vec<f64>>().iter().sum()
}

pub(super) fn first_non_finite(x: &Tensor) -> Option<(usize, f32)> {
    let at = x.elems().first_non_finite()?;
    Some((at, x.host()[at]))
}
