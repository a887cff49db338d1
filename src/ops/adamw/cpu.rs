use rayon::prelude::*;

use super::{Moments, Numbers};
use crate::device::Tensor;

/// Elements per task.
const GRAIN: usize = 1 << 14;

pub(super) fn step(params: &mut Tensor, grads: &Tensor, moments: &mut Moments, n: Numbers) {
    let state =
        moments.exp_avg.host_mut().par_chunks_mut(GRAIN).zip(moments.exp_avg_sq.host_mut().par_chunks_mut(GRAIN));
    let all = params.host_mut().par_chunks_mut(GRAIN).zip(grads.host().par_chunks(GRAIN)).zip(state);
    all.for_each(|((params, grads), (means, squares))| {
        // One rounding where PyTorch's vector loops round once: the results are its bits.
        for ((p, g), (m, v)) in params.iter_mut().zip(grads).zip(means.iter_mut().zip(squares)) {
            let g = g * n.factor;
            *m = n.beta1_rest.mul_add(g - *m, *m);
            *v = (n.beta2_rest * g).mul_add(g, *v * n.beta2);
            let denominator = v.sqrt() / n.correction + n.eps;
            *p = *p * n.shrink + n.step_size * *m / denominator;
        }
    });
}
