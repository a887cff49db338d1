use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

pub(super) fn forward(x: &mut Tensor, x0: &Tensor, noise: &Tensor, t: &[f32]) {
    let (gpu, dtype, n) = (x0.gpu(), x0.dtype(), x0.len() / t.len().max(1));
    assert_eq!(noise.dtype(), dtype, "noising: noise for {x0:?}");
    let grid = Grid::of([Grid::packs(n, dtype).blocks[0] as usize, t.len(), 1], 256);
    let times = gpu.table(t);
    let args = [x.arg_mut(), x0.arg(), noise.arg(), (&times).into(), (n as u64).into()];
    gpu.launch("noising", &format!("noising_forward_{}", suffix(dtype)), grid, args);
}
