//! Weights as a file stores them, to numbers that can be multiplied.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cuda::decode;

use super::{copy, dispatch};
use crate::device::{DType, Tensor};

/// `x` in single precision if it is stored in [blocks](crate::device::Blocks), `x` itself if it is not.
pub fn forward(x: &Tensor) -> Tensor {
    decoded(x, DType::F32)
}

/// `x` in what products are computed in if it is stored in blocks, `x` itself if it is not: bf16 on a GPU, whose tensor cores
/// multiply that and whose memory need not hold more, single precision on the CPU. A weight that is to be [multiplied in single
/// precision](Tensor::multiplied) is widened.
pub fn operand(x: &Tensor) -> Tensor {
    match x.wide() {
        None => decoded(x, x.device().activations(x.dtype())),
        wide => copy::cast(&decoded(x, DType::F32), DType::F32).multiplied(wide),
    }
}

fn decoded(x: &Tensor, dtype: DType) -> Tensor {
    if !matches!(x.dtype(), DType::Blocks(_)) {
        return x.clone();
    }
    let mut y = Tensor::scratch_of(&x.device(), dtype, x.shape());
    dispatch!(x, forward(&mut y, x));
    y
}
