#![expect(unused)]
use crate::device::Tensor;
use crate::ops::adaln::Chunk;
use crate::ops::cpu::rows_per_task;

pub(super) fn backward(dy: &mut Tensor, dx: &Tensor, gate: Chunk) {
    todo!("kernel")
}
