use rayon::prelude::*;

use crate::device::Tensor;

/// Elements per task.
const GRAIN: usize = 1 << 14;

pub(super) fn forward(average: &mut Tensor, x: &Tensor, decay: f32) {
    let chunks = average.host_mut().par_chunks_mut(GRAIN).zip(x.host().par_chunks(GRAIN));
    chunks.for_each(|(a, x)| a.iter_mut().zip(x).for_each(|(a, x)| *a = decay * *a + (1.0 - decay) * x));
}
