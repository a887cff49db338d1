use rayon::prelude::*;

use crate::device::Tensor;

/// Elements that are decoded as one task: whole blocks of every format.
const TASK: usize = 1 << 14;

pub(super) fn forward(y: &mut Tensor, x: &Tensor) {
    let (blocks, bytes, scale) = x.blocks().expect("the contract has looked");
    let chunk = TASK / blocks.elements() * blocks.bytes();
    let parts = y.host_mut().par_chunks_mut(TASK).zip(bytes.par_chunks(chunk));
    parts.for_each(|(y, bytes)| blocks.decode(bytes, scale, y));
}
