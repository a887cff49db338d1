#![expect(unused)]
use super::Window;
use crate::device::{Elems, Tensor, workers};
use crate::ops::cpu::gemm::{KC, Left, Mat, NR, Panels, pack_f32, tiles};
use crate::ops::cpu::{Shared, at_least, repeated, scratch};
use crate::ops::math::wide;

pub(super) fn arrange(out: &mut Tensor, w: &Tensor) {
    todo!("kernel")
}

pub(super) fn fold(out: &mut Tensor, w: &Tensor) {
    todo!("kernel")
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor, window: Window, add: Option<&Tensor>) {
    todo!("kernel")
}

pub(super) fn doubled(y: &mut Tensor, x: &Tensor, w: &Tensor, bias: &Tensor) {
    todo!("kernel")
}
