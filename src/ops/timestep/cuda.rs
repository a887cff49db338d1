use crate::device::Tensor;
use crate::device::gpu::Grid;

pub(super) fn forward(out: &mut Tensor, timestep: &[f32]) {
    let (gpu, half) = (out.gpu(), out.width() / 2);
    let (times, n) = (gpu.table(timestep), timestep.len() * half);
    let args = [out.arg_mut(), (&times).into(), (half as u32).into(), (n as u32).into()];
    gpu.launch("timestep", "timestep_forward", Grid::flat(n), args);
}
