#![expect(unused)]
use super::{Heads, Mask, OutputGrad, Part, PartGrad};
use crate::device::{Elems, Tensor, workers};
use crate::ops::cpu::gemm::{Lane, Mat, Packed};
use crate::ops::cpu::{Shared, at_least, dot, scratch, sum};
use crate::ops::math::{self, wide};

pub(super) fn forward(
    out: &mut [Tensor],
    lse: &mut Tensor,
    parts: &[Part],
    Heads { count: heads, scale, compute }: Heads,
    mask: Mask,
) {
    todo!("kernel")
}

pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    Heads { count: heads, scale, compute }: Heads,
) {
    todo!("kernel")
}
