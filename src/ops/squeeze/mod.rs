//! Squeeze and excitation (Hu et al. 2018): the mean of every channel, and channels weighted by what a small network makes
//! of the means; forward only, in single precision: of rewards.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// The mean of every channel over all pixels. `x` `[b, h, w, channels]`; returns `[b, channels]`.
pub fn means(x: &Tensor) -> Tensor {
    let &[b, h, w, channels] = x.shape() else { panic!("squeeze: {x:?}") };
    assert!(h * w > 0 && x.dtype() == DType::F32, "squeeze: {x:?}");
    let mut y = x.scratch_like(&[b, channels]);
    dispatch!(y, means(&mut y, x));
    y
}

/// `x·gate` of every channel, in place. `x` `[b, h, w, channels]`, `gates` `[b, channels]`.
pub fn excite(x: &mut Tensor, gates: &Tensor) {
    assert_eq!(gates.shape(), [x.dim(0), x.dim(3)], "excite: {x:?}");
    assert_eq!([x.dtype(), gates.dtype()], [DType::F32; 2], "excite: {x:?}");
    dispatch!(x, excite(x, gates));
}
