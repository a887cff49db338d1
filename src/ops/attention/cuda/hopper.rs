//! Attention by products of warp groups, for heads of halves.

use crate::device::DType;
use crate::device::gpu::driver::{DevicePtr, TensorMap};
use crate::device::gpu::{Arg, Gpu, Swizzle, TensorMapDesc};

/// One of the tensors of a part, `[batch, tokens, heads·d]`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub base: DevicePtr,
    pub dtype: DType,
    pub batch: usize,
    pub tokens: u32,
    pub heads: u32,
    pub d: u32,
}

/// Columns of heads as kernels of this width have them in shared memory: panels of rows of 128 bytes, and one of what is left.
/// Panels that are alike are listed once.
pub(super) fn panels(width: u32) -> &'static [(u32, Swizzle)] {
    match width {
        64 | 128 => &[(64, Swizzle::B128)],
        80 => &[(64, Swizzle::B128), (16, Swizzle::B32)],
        96 => &[(64, Swizzle::B128), (32, Swizzle::B64)],
        _ => unreachable!("no kernel for heads of {width}"),
    }
}

/// Maps over (column, head, token, sample) of an operand, with boxes of `rows` tokens of one head: one for each kind of panel
/// of a kernel for heads of `width`, which reads as zero what heads of `d` have less.
pub(super) fn maps(gpu: &Gpu, of: Operand, rows: u32, width: u32) -> Vec<TensorMap> {
    let bytes = |elements: u64| of.dtype.bytes(elements as usize) as u64;
    let (d, heads, tokens) = (u64::from(of.d), u64::from(of.heads), u64::from(of.tokens));
    let map = |&(columns, swizzle): &(u32, Swizzle)| {
        let desc = TensorMapDesc {
            dtype: of.dtype,
            base: of.base,
            dims: vec![d, heads, tokens, of.batch as u64],
            strides: vec![bytes(d), bytes(heads * d), bytes(tokens * heads * d)],
            tile: vec![columns, 1, rows, 1],
            steps: vec![1; 4],
            swizzle,
        };
        match gpu.tensor_map(&desc) {
            Arg::Map(map) => map,
            _ => unreachable!("a map"),
        }
    };
    panels(width).iter().map(map).collect()
}
