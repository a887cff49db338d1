#![expect(unused)]
use crate::device::Tensor;

pub(super) fn forward(average: &mut Tensor, x: &Tensor, decay: f32) {
    todo!("kernel")
}
