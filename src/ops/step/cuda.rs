#![expect(unused)]
use super::{Inputs, Row};
use crate::device::Tensor;
use crate::ops::cpu::ordered_sum;
use crate::ops::math::wide;
use crate::ops::noise::normals;

pub(super) fn forward(next: &mut Tensor, inputs: Inputs, row: Row) {
    todo!("kernel")
}

pub(super) fn residuals(means: &mut [f64], next: &Tensor, inputs: Inputs, row: Row) {
    todo!("kernel")
}
