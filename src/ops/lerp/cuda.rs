use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(average: &mut Tensor, x: &Tensor, decay: f32) {
    let (gpu, dtype, n) = (x.gpu(), x.dtype(), x.len());
    assert_eq!(average.dtype(), dtype, "lerp: an average of {x:?}");
    // A table, because decays change from step to step.
    let decay = gpu.table(&[decay]);
    let args = [average.arg_mut(), x.arg(), (&decay).into(), (n as u64).into()];
    gpu.launch("lerp", &format!("lerp_forward_{}", suffix(dtype)), Grid::packs(n, dtype), args);
}
