use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, suffix};
use crate::ops::adaln::Chunk;

pub(super) fn backward(dy: &mut Tensor, dx: &Tensor, gate: Chunk) {
    let (gpu, dtype, m) = (dx.gpu(), dx.dtype(), gate.modulation);
    assert_eq!(m.dtype(), dtype, "gate backward: a gate for {dx:?}");
    let (per_sample, d) = (dx.dim(1) * dx.dim(2), dx.dim(2));
    let grid = Grid { blocks: [Grid::packs(per_sample, dtype).blocks[0], dx.dim(0) as u32, 1], threads: 256 };
    let gate = Arg::Ptr(m.address() + dtype.bytes(gate.index * d) as u64);
    let sizes = [(m.width() as u64).into(), (per_sample as u32).into(), (d as u32).into()];
    let args = [dy.arg_mut(), dx.arg(), gate].into_iter().chain(sizes);
    gpu.launch("gate", &format!("gate_backward_{}", suffix(dtype)), grid, args);
}
