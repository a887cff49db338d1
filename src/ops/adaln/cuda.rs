use super::{Chunk, EPS};
use crate::device::Tensor;
use crate::device::gpu::driver::Arg;
use crate::device::gpu::{Grid, suffix};

impl Chunk<'_> {
    /// Where the chunk of the first sample is, of width `d`, and how far those of two samples are apart.
    pub(in crate::ops) fn args(&self, d: usize) -> [Arg; 2] {
        let m = self.modulation;
        let first = m.address() + m.dtype().bytes(self.index * d) as u64;
        [Arg::Ptr(first), (m.width() as u64).into()]
    }
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, shift: Chunk, scale: Chunk) {
    let operands = [y.arg_mut(), x.arg()].into_iter().chain(shift.args(x.dim(2)));
    launch("forward", operands, x, scale);
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk) {
    launch("backward", [dx.arg_mut(), dy.arg(), x.arg()].into_iter(), x, scale);
}

/// A kernel over the rows of what is shaped as `x`.
fn launch(name: &str, operands: impl Iterator<Item = Arg>, x: &Tensor, scale: Chunk) {
    let (&[samples, rows, width], dtype) = (x.shape(), x.dtype()) else { panic!("adaln: x {x:?}") };
    assert_eq!(scale.modulation.dtype(), dtype, "adaln: the modulation of {x:?}");
    let (grid, lanes) = Grid::rows(samples, rows, width, dtype);
    let sizes = [(rows as u32).into(), (width as u32).into(), lanes.into(), EPS.into()];
    let entry = format!("adaln_{name}_{}", suffix(dtype));
    x.gpu().launch("adaln", &entry, grid, operands.chain(scale.args(width)).chain(sizes));
}
