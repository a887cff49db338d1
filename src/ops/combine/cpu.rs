use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::products::Difference;

/// Elements per piece.
const PIECE: usize = 1 << 10;

pub(super) fn forward(out: &mut Tensor, differences: &[Difference], coefficients: &[Vec<f64>]) {
    let per = (out.len() / out.dim(0).max(1)).max(1);
    out.host_mut().par_chunks_exact_mut(per).enumerate().for_each(|(row, out)| {
        for (i, out) in out.chunks_mut(PIECE).enumerate() {
            let (mut taken, mut sums) = ([0.0f32; PIECE], [0.0f64; PIECE]);
            for (d, c) in differences.iter().zip(coefficients) {
                let (c, taken) = (c[row] / per as f64, &mut taken[..out.len()]);
                d.take(taken, row, i * PIECE);
                sums.iter_mut().zip(taken.iter()).for_each(|(s, d)| *s += c * f64::from(*d));
            }
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = s as f32);
        }
    });
}
