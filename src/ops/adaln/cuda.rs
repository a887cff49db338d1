use super::{Chunk, EPS};
use crate::device::Tensor;
use crate::device::gpu::{Arg, DevicePtr, Grid, Rows};

impl Chunk<'_> {
    /// Chunks of width `d`.
    fn arg(&self, d: usize) -> ChunkArg {
        let m = self.modulation;
        ChunkArg { first: m.address() + m.dtype().bytes(self.index * d) as u64, stride: m.width() as u64 }
    }
}

/// `Chunk` of kernels/adaln.cu: where that of the first sample is, and how far those of two samples are apart.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
struct ChunkArg {
    first: DevicePtr,
    stride: u64,
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, shift: Chunk, scale: Chunk) {
    launch("forward", &[y.address_mut(), x.address()], x, &[shift, scale], None);
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, scale: Chunk, gated: Option<(&mut Tensor, Chunk)>) {
    let operands = [dx.address_mut(), dy.address(), x.address()];
    let (gated, gate) = match gated {
        Some((gated, gate)) => (gated.address_mut(), Some(gate)),
        None => (0, None),
    };
    launch("backward", &operands, x, &[scale], Some((gated, gate)));
}

/// A kernel over the rows of what is shaped as `x`: of operands, then chunks, then a gated result and its chunk.
fn launch(name: &str, operands: &[DevicePtr], x: &Tensor, chunks: &[Chunk], gated: Option<(DevicePtr, Option<Chunk>)>) {
    let (&[samples, rows, width], dtype) = (x.shape(), x.dtype()) else { panic!("adaln: x {x:?}") };
    let place = |c: &Chunk| {
        assert_eq!(c.modulation.dtype(), dtype, "adaln: the modulation of {x:?}");
        c.arg(width)
    };
    let chunks: Vec<_> = chunks.iter().map(place).collect();
    let gated = gated.map(|(gated, gate)| (gated, gate.as_ref().map(place).unwrap_or_default()));
    let of_chunks = chunks.iter().chain(gated.as_ref().map(|(_, gate)| gate));
    let of_chunks = of_chunks.flat_map(|c| [c.first, dtype.bytes(c.stride as usize) as u64]);
    let places: Vec<_> = operands.iter().copied().chain(gated.as_ref().map(|(to, _)| *to)).chain(of_chunks).collect();
    let Rows { grid, lanes, suffix } = Grid::rows(samples, rows, width, dtype, &places);

    let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
    args.extend(chunks.iter().map(Arg::of));
    args.extend(gated.into_iter().flat_map(|(to, gate)| [Arg::Ptr(to), Arg::of(&gate)]));
    args.extend([(rows as u32).into(), (width as u32).into(), lanes.into(), EPS.into()]);
    x.gpu().launch("adaln", &format!("adaln_{name}_{suffix}"), grid, args);
}
