use super::{Moments, Numbers};
use crate::device::gpu::Grid;
use crate::device::{DType, Tensor};

pub(super) fn step(params: &mut Tensor, grads: &Tensor, moments: &mut Moments, n: Numbers) {
    let (gpu, count) = (params.gpu(), params.len());
    assert!([&*params, grads].iter().all(|t| t.dtype() == DType::F32), "adamw: {params:?}, {grads:?}");
    let Numbers { factor, step_size, correction, shrink, beta1_rest, beta2, beta2_rest, eps } = n;
    let numbers = gpu.table(&[factor, step_size, correction, shrink, beta1_rest, beta2, beta2_rest, eps]);
    let (means, squares) = (moments.exp_avg.arg_mut(), moments.exp_avg_sq.arg_mut());
    let args = [params.arg_mut(), grads.arg(), means, squares, (&numbers).into(), (count as u64).into()];
    gpu.launch("adamw", "adamw_step", Grid::packs(count, DType::F32), args);
}
