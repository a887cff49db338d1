#![expect(unused)]
use crate::device::Tensor;

pub(super) fn forward(out: &mut Tensor, images: &Tensor) {
    todo!("kernel")
}
