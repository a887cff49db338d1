use rayon::prelude::*;

use crate::device::Tensor;
use crate::ops::cpu::{at_least, rows_per_task};
use crate::ops::math::wide;

/// Pixels that are added up before their sum is added to the others': part of the definition of the result.
const CHAIN: usize = 256;

pub(super) fn means(y: &mut Tensor, x: &Tensor) {
    let (channels, pixels) = (y.width(), x.dim(1) * x.dim(2));
    let images = y.host_mut().par_chunks_exact_mut(channels).zip(x.host().par_chunks_exact(channels * pixels));
    images.for_each(|(y, x)| {
        let chains: Vec<Vec<f32>> = x
            .par_chunks(CHAIN * channels)
            .with_min_len(at_least(rows_per_task(CHAIN * channels)))
            .map(|chain| {
                let mut sum = vec![0.0; channels];
                add_up(&mut sum, chain);
                sum
            })
            .collect();
        y.fill(0.0);
        chains.iter().for_each(|chain| add_up(y, chain));
        y.iter_mut().for_each(|v| *v /= pixels as f32);
    });
}

wide! {
    /// Adds rows as long as `sum`.
    fn add_up(sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
    }
}

pub(super) fn excite(x: &mut Tensor, gates: &Tensor) {
    let (channels, pixels) = (gates.width(), x.dim(1) * x.dim(2));
    let band = rows_per_task(channels).min(pixels.max(1));
    let images =
        x.host_mut().par_chunks_exact_mut((channels * pixels).max(1)).zip(gates.host().par_chunks_exact(channels));
    images.for_each(|(x, gates)| x.par_chunks_mut(band * channels).for_each(|x| multiply(x, gates)));
}

wide! {
    fn multiply(x: &mut [f32], gates: &[f32]) {
        for row in x.chunks_exact_mut(gates.len()) {
            row.iter_mut().zip(gates).for_each(|(v, g)| *v *= g);
        }
    }
}
