#![expect(unused)]
use crate::device::Tensor;
use crate::ops::cpu::at_least;

pub(super) fn gather(out: &mut Tensor, x: &Tensor, rows: &[usize]) {
    todo!("kernel")
}

pub(super) fn flat_into(out: &mut Tensor, first: usize, x: &Tensor) {
    todo!("kernel")
}

pub(super) fn block_into(out: &mut Tensor, token: usize, column: usize, x: &Tensor) {
    todo!("kernel")
}

pub(super) fn columns(out: &mut Tensor, x: &Tensor, first: usize) {
    todo!("kernel")
}
