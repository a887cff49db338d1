#![expect(unused)]
use super::{Order, Patches};
use crate::device::Tensor;
use crate::ops::cpu::at_least;

pub(super) fn forward(out: &mut Tensor, latent: &Tensor, patches: &Patches, order: Order) {
    todo!("kernel")
}

pub(super) fn inverse(out: &mut Tensor, tokens: &Tensor, patches: &Patches, order: Order) {
    todo!("kernel")
}
