use crate::device::Tensor;
use crate::device::gpu::Grid;
use crate::device::philox::Key;

pub(super) fn normal(out: &mut Tensor, keys: &[Key]) {
    let (gpu, length) = (out.gpu(), out.len() / keys.len().max(1));
    let words = gpu.table(&keys.iter().map(|key| key.words()).collect::<Vec<_>>());
    let grid = Grid::of([length.div_ceil(4 * 256), keys.len(), 1], 256);
    gpu.launch("noise", "noise_normal", grid, [out.arg_mut(), (&words).into(), (length as u64).into()]);
}
