#![expect(unused)]
use crate::device::Tensor;
use crate::ops::products::Difference;

pub(super) fn forward(out: &mut Tensor, differences: &[Difference], coefficients: &[Vec<f64>]) {
    todo!("kernel")
}
