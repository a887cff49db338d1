//! kernels/attention_wide.sm_90a.cu: heads of autoencoders.

use crate::device::gpu::{Arg, Grid, Swizzle, TensorMapDesc, suffix};
use crate::device::{DType, Tensor};
use crate::ops::attention::{Heads, Mask, Part};

/// As in the kernel: tokens of a tile of queries and of keys, and columns of a panel and of a block's result.
const QUERIES: usize = 64;
const KEYS: usize = 128;
const PANEL: usize = 64;
const COLUMNS: usize = 256;

/// Whether [`forward`] takes it: one sequence in half precision that is multiplied in it, heads of 256 or 512.
pub(super) fn fits(out: &[Tensor], parts: &[Part], heads: Heads, mask: Mask) -> bool {
    let ([out], [Part { q, k, v }]) = (out, parts) else { return false };
    let half = matches!(q.dtype(), DType::F16 | DType::Bf16) && [k, v].iter().all(|t| t.dtype() == q.dtype());
    let aligned = [out, q, k, v].iter().fold(0, |all, t| all | t.address()).is_multiple_of(16);
    let width = q.dim(2) / heads.count;
    let plain = !mask.causal && mask.bias.is_none() && heads.scale > 0.0 && heads.compute != DType::F32;
    q.gpu().is_hopper() && half && aligned && plain && (width == COLUMNS || width == 2 * COLUMNS)
}

pub(super) fn forward(out: &mut Tensor, lse: &mut Tensor, part: &Part, heads: Heads) {
    let (gpu, dtype) = (lse.gpu(), part.q.dtype());
    let &[batch, n, width] = part.q.shape() else { panic!("attention: q {:?}", part.q) };
    let d = width / heads.count;
    let map = |t: &Tensor, tokens: usize| {
        let desc = TensorMapDesc {
            dtype,
            base: t.address(),
            dims: [d, heads.count, n, batch].map(|n| n as u64).to_vec(),
            strides: [d, width, n * width].map(|n| dtype.bytes(n) as u64).to_vec(),
            tile: vec![PANEL as u32, 1, tokens as u32, 1],
            steps: vec![1; 4],
            swizzle: Swizzle::B128,
        };
        gpu.tensor_map(&desc).bytes()
    };
    let maps: Vec<u8> = [map(part.q, QUERIES), map(part.k, KEYS), map(part.v, KEYS)].concat();
    let grid = Grid::of([n.div_ceil(QUERIES), heads.count * (d / COLUMNS), batch], 384);
    let sizes = [n, heads.count, d].map(|n| u32::try_from(n).expect("sizes of attention fit 32 bits").into());
    let args = [Arg::Bytes(maps.into()), out.arg_mut(), lse.arg_mut()].into_iter().chain(sizes);
    gpu.launch("attention_wide", &format!("attention_wide_{}", suffix(dtype)), grid, args.chain([heads.scale.into()]));
}
