#![expect(unused)]
use crate::device::Tensor;

pub(super) fn bicubic(out: &mut Tensor, middle: &mut Tensor, images: &Tensor, rows_first: bool) {
    todo!("kernel")
}
