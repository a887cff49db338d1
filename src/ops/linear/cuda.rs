#![expect(unused)]
use super::{Adapted, InputGrad, Lora, LoraGrad, Then};
use crate::device::{DType, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::Chunk;
use crate::ops::cpu::Shared;
use crate::ops::cpu::gemm::{Epilogue, Low, Mat, Product, matmul, products};

pub(super) fn forward(
    outputs: &mut [&mut Tensor],
    hidden: Option<&mut Tensor>,
    low: &mut [&mut Vec<Tensor>],
    x: &Tensor,
    layers: &[Adapted],
    then: Then,
) {
    todo!("kernel")
}

pub(super) fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<(&Lora, &mut (Tensor, Option<Tensor>))>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    todo!("kernel")
}

pub(super) fn merge(merged: &mut Tensor, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    todo!("kernel")
}

pub(super) fn round(out: &mut Tensor, weight: &Tensor) {
    todo!("kernel")
}
