//! Attention by products of warp groups, for heads of halves.

use super::{PARTS, PartArg, Sequence};
use crate::device::DType;
use crate::device::gpu::driver::{DevicePtr, TensorMap};
use crate::device::gpu::{Arg, Gpu, Grid, Swizzle, TensorMapDesc, suffix};

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

/// A kernel of the forward without a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What the entry is called after.
    pub name: &'static str,
    /// The widest heads that it is for.
    pub width: u32,
    /// Queries of a block.
    pub rows: u32,
}

const fn variant(name: &'static str, width: u32, rows: u32) -> Variant {
    Variant { name, width, rows }
}

/// The kernel for heads of `d`. With three groups of 64 queries there are 160 registers for a thread, enough for heads of up
/// to 64 (32 of sums, 64 of scores, 32 of exponentials); with two 240. Masks are of short sequences.
fn chosen(d: u32, masked: bool) -> Variant {
    match (masked, d) {
        (false, ..=64) => variant("forward", 64, 192),
        (false, ..=80) => variant("forward", 80, 128),
        (false, ..=96) => variant("forward", 96, 128),
        (false, _) => variant("forward", 128, 128),
        (true, ..=64) => variant("masked", 64, 128),
        (true, _) => variant("masked", 128, 128),
    }
}

/// The kernels for bf16 that are to be timed against one another, for heads of 64 and of 128, those of choice first: groups in
/// turns, beside one another, or each step after the other; 192 or 128 queries; rings of two or three stages. All give the same
/// bits, since all go through keys 128 at a time.
pub fn variants() -> Vec<Variant> {
    vec![
        chosen(64, false),
        variant("turns_192_s2", 64, 192),
        variant("turns_128_s3", 64, 128),
        variant("overlap_128_s3", 64, 128),
        variant("serial_192_s3", 64, 192),
        variant("serial_192_s2", 64, 192),
        variant("serial_128_s3", 64, 128),
        chosen(128, false),
        variant("overlap_128_s2", 128, 128),
        variant("serial_128_s2", 128, 128),
    ]
}

/// What follows the maps in `Operands` of kernels/common/attention_wgmma.cuh.
#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Numbers {
    wide: [DevicePtr; PARTS],
    tokens: [u32; PARTS],
    first: [u32; PARTS],
    parts: u32,
    n: u32,
    heads: u32,
    d: u32,
    rows: u32,
    tiles_of_head: u32,
    tiles: u32,
    is_wide: u32,
    scale: f32,
    padding: u32,
}

/// Queries of a warp group, and keys of a stage.
const QUERIES: u32 = 64;
const KEYS: u32 = 128;

/// Whether there is a kernel for these operands of `dtype`.
pub(super) fn fits(gpu: &Gpu, s: &Sequence, dtype: DType) -> bool {
    gpu.is_hopper() && s.vectors(dtype)
}

/// Attention over `batch` samples of `s`, operands of `dtype`, by the kernel of choice or the one that is asked for. `rest` is
/// what entries take besides: logarithms, bias or none, whether it is causal.
pub(super) fn forward(
    gpu: &Gpu,
    s: &Sequence,
    (batch, dtype): (usize, DType),
    variant: Option<Variant>,
    masked: bool,
    rest: [Arg; 3],
) {
    let Variant { name, width, rows } = variant.unwrap_or_else(|| chosen(s.d, masked));
    // Maps have no dimensions of 0; a part without tokens takes no part.
    let parts: Vec<_> = s.part.iter().filter(|p| p.n > 0).collect();
    let map = |p: &PartArg, base: DevicePtr, rows: u32| {
        maps(gpu, Operand { base, dtype, batch, tokens: p.n, heads: s.heads, d: s.d }, rows, width)
    };
    let of_each = |of: &dyn Fn(&PartArg) -> Vec<TensorMap>| {
        let mut all: Vec<_> = parts.iter().map(|p| of(p)).collect();
        let none = vec![TensorMap([0; 16]); panels(width).len()];
        all.resize(PARTS, none);
        all.concat()
    };
    // Results of f32 go out without a map, but there is one for the type of the operands.
    let out = |p: &PartArg| if s.wide == 0 { map(p, p.out, QUERIES) } else { map(p, p.q, QUERIES) };
    let all = [
        of_each(&|p| map(p, p.q, QUERIES)),
        of_each(&|p| map(p, p.k, KEYS)),
        of_each(&|p| map(p, p.v, KEYS)),
        of_each(&out),
    ];
    let mut numbers = Numbers {
        wide: [0; PARTS],
        tokens: [0; PARTS],
        first: [0; PARTS],
        parts: parts.len() as u32,
        n: s.n,
        heads: s.heads,
        d: s.d,
        rows: parts.iter().map(|p| p.n.div_ceil(QUERIES)).sum(),
        tiles_of_head: 0,
        tiles: 0,
        is_wide: s.wide,
        scale: s.scale,
        padding: 0,
    };
    for (i, p) in parts.iter().enumerate() {
        (numbers.wide[i], numbers.tokens[i], numbers.first[i]) = (p.out, p.n, p.first);
    }
    numbers.tiles_of_head = numbers.rows.div_ceil(rows / QUERIES);
    numbers.tiles = numbers.tiles_of_head * s.heads * super::small(batch);
    let mut bytes: Vec<u8> = all.concat().iter().flat_map(|m| bytemuck::bytes_of(&m.0).to_vec()).collect();
    bytes.extend(bytemuck::bytes_of(&numbers));
    bytes.resize(bytes.len().next_multiple_of(align_of::<TensorMap>()), 0);
    let blocks = numbers.tiles.min(gpu.facts().processors) as usize;
    let entry = format!("attention_wgmma_{name}_{}_d{width}", suffix(dtype));
    let grid = Grid::of([blocks, 1, 1], 128 + 2 * rows);
    gpu.launch("attention_wgmma", &entry, grid, [Arg::Bytes(bytes.into())].into_iter().chain(rest));
}
