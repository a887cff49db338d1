//! Weights as a file stores them, to numbers that can be multiplied.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cuda::decode;

use super::dispatch;
use crate::device::{DType, Tensor};

/// `x` in single precision if it is stored in [blocks](crate::device::Blocks), `x` itself if it is not.
pub fn forward(x: &Tensor) -> Tensor {
    if !matches!(x.dtype(), DType::Blocks(_)) {
        return x.clone();
    }
    let mut y = x.scratch_like(x.shape());
    dispatch!(x, forward(&mut y, x));
    y
}
