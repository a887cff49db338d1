use rayon::prelude::*;

use crate::device::Tensor;

pub(super) fn forward(x: &mut Tensor, x0: &Tensor, noise: &Tensor, t: &[f32]) {
    let per = (x0.len() / t.len().max(1)).max(1);
    let rows = x.host_mut().par_chunks_exact_mut(per).zip(x0.host().par_chunks_exact(per));
    rows.zip(noise.host().par_chunks_exact(per)).zip(t).for_each(|(((x, x0), noise), t)| {
        x.iter_mut().zip(x0.iter().zip(noise)).for_each(|(x, (x0, e))| *x = (1.0 - t) * x0 + t * e);
    });
}
