#![expect(unused)]
use super::{Moments, Numbers};
use crate::device::Tensor;

pub(super) fn step(params: &mut Tensor, grads: &Tensor, moments: &mut Moments, n: Numbers) {
    todo!("kernel")
}
