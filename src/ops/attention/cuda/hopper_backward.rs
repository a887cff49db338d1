//! The gradients on Hopper, in half precision: kernels/attention_wgmma_backward.sm_90a.cu.

use super::hopper::{Operand, maps, panels};
use super::{Heads, OutputGrad, Part, PartArg, PartGrad, Sequence, product, small};
use crate::device::gpu::driver::DevicePtr;
use crate::device::gpu::{Arg, Gpu, Grid, suffix};
use crate::device::{DType, Tensor};

const OP: &str = "attention_wgmma_backward";

/// Tensor maps of a launch: `Maps` of the kernels.
const MAPS: usize = 24;
/// Of each part: queries, keys, values, gradients, and up to two results.
const MAPPED: usize = 6;

/// Keys that a block owns at a time.
const KEY_BLOCK: u32 = 128;

/// How tokens are divided among blocks and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// What tells it from the others.
    pub name: &'static str,
    /// Queries that keys meet in a step.
    pub query_step: u32,
    /// Queries that a block owns at a time.
    pub query_block: u32,
    /// What the kernel over keys has behind its name, and that over queries.
    entries: [&'static str; 2],
}

/// What is done unless another is asked for.
const DEFAULT: Variant = Variant { name: "held", query_step: 64, query_block: 128, entries: ["", ""] };

/// Those there are for heads of 64 in bf16, the default first.
const VARIANTS: [Variant; 5] = [
    DEFAULT,
    // Keys and values read from shared memory at every product; held in registers they spare it a quarter of its work.
    Variant { name: "keys_read", entries: ["_read", ""], ..DEFAULT },
    Variant { name: "steps_of_128_queries", query_step: 128, entries: ["_q128", ""], ..DEFAULT },
    // Queries held in registers, and 64 keys a step; the default reads them, and has 128.
    Variant { name: "queries_held", entries: ["", "_held"], ..DEFAULT },
    Variant { name: "blocks_of_192_queries", query_block: 192, entries: ["", "_q192"], ..DEFAULT },
];

/// Ways to divide the work that are there for heads of 64 in bf16, so that a GPU can say which is fastest; the first is what
/// [`backward`](super::super::backward) does.
pub fn variants() -> &'static [Variant] {
    &VARIANTS
}

/// The width of the kernels for heads of `d`: columns that a head has less are read as zero.
fn width(d: usize) -> Option<u32> {
    // Of the narrower, most of what the kernels do would be for nothing.
    [64, 80, 96, 128].into_iter().find(|width| d > 32 && d <= *width as usize)
}

/// Whether there are kernels for this.
pub(super) fn fits(gpu: &Gpu, outputs: &[Option<OutputGrad>], parts: &[Part], heads: Heads) -> bool {
    let first = parts[0].q;
    let dtype = first.dtype();
    let of_outputs = outputs.iter().flatten().flat_map(|o| [o.out, o.dout]);
    let mut all = parts.iter().flat_map(|p| [p.q, p.k, p.v]).chain(of_outputs);
    gpu.is_hopper()
        && matches!(dtype, DType::F16 | DType::Bf16)
        && product(first, heads) == dtype
        && width(first.dim(2) / heads.count).is_some_and(|w| parts.len() * MAPPED * panels(w).len() <= MAPS)
        && all.all(|t| t.dtype() == dtype && t.dim(1) > 0 && t.address().is_multiple_of(16))
}

/// What the kernels need to know of where things lie.
struct Layout<'a> {
    gpu: &'a Gpu,
    sequence: Sequence,
    dtype: DType,
    batch: usize,
    width: u32,
}

impl Layout<'_> {
    /// `Maps`; `of` has the addresses of each part, 0 for what is not used.
    fn maps(&self, of: impl Fn(&PartArg) -> [DevicePtr; MAPPED]) -> Arg {
        let Self { gpu, sequence: s, dtype, batch, width } = *self;
        let panels = panels(width).len();
        let mut all = [[0; 16]; MAPS];
        for (i, p) in s.part[..s.parts as usize].iter().enumerate() {
            for (j, base) in of(p).into_iter().enumerate().filter(|(_, base)| *base != 0) {
                let operand = Operand { base, dtype, batch, tokens: p.n, heads: s.heads, d: s.d };
                let to = &mut all[(i * MAPPED + j) * panels..];
                to.iter_mut().zip(maps(gpu, operand, 64, width)).for_each(|(to, map)| *to = map.0);
            }
        }
        Arg::of(&all)
    }

    /// A block for each tile of `tile` of the tokens that `of` counts, but no more than there are processors: a group of warps
    /// copies, and there is one for 64 tokens.
    fn grid(&self, of: impl Fn(&PartArg) -> u32, tile: u32) -> Grid {
        let tiles: usize =
            self.sequence.grid(of, tile as usize, self.batch, 0).blocks.iter().map(|b| *b as usize).product();
        Grid::of([tiles.min(self.gpu.facts().processors as usize), 1, 1], 128 + 2 * tile)
    }

    fn entry(&self, name: &str, variant: &str) -> String {
        format!("{OP}_{name}_{}_d{}{variant}", suffix(self.dtype), self.width)
    }
}

/// What [`fits`], in one of the ways there are.
pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
    variant: Option<Variant>,
) {
    let variant = variant.unwrap_or(DEFAULT);
    let (gpu, batch, dtype) = (lse.gpu(), lse.dim(0), parts[0].q.dtype());
    let operands: Vec<_> = parts.iter().map(|p| [p.q, p.k, p.v].map(Clone::clone)).collect();
    let mut s = Sequence::new(&operands, heads, false);
    for ((part, output), grad) in s.part.iter_mut().zip(outputs).zip(grads) {
        (part.dk, part.dv) = (grad.k.address_mut(), grad.v.address_mut());
        (part.queries, part.stats) = (0, s.stats);
        if let (Some(OutputGrad { out, dout }), Some(dq)) = (output, &mut grad.q) {
            (part.queries, part.dq) = (part.n, dq.address_mut());
            (part.out, part.dout) = (out.address(), dout.address());
            s.stats += part.n.next_multiple_of(variant.query_step);
        }
    }
    let mut stats = Tensor::scratch(&lse.device(), &[2, batch, heads.count, s.stats as usize]);
    let width = width(s.d as usize).expect("a kernel for heads of this width");
    let layout = Layout { gpu: &gpu, sequence: s, dtype, batch, width };
    let sequence = s.half_arg(dtype);

    let samples = small(batch);
    let maps = layout.maps(|p| [p.q, p.k, p.v, p.dout, p.dq, 0]);
    let grid = layout.grid(|p| p.queries, variant.query_block);
    let args = [sequence.clone(), maps, lse.arg(), stats.arg_mut(), samples.into()];
    gpu.launch(OP, &layout.entry("queries", variant.entries[1]), grid, args);

    let maps = layout.maps(|p| [p.q, p.k, p.v, p.dout, p.dk, p.dv]);
    let args = [sequence, maps, stats.arg(), samples.into()];
    gpu.launch(OP, &layout.entry("keys", variant.entries[0]), layout.grid(|p| p.n, KEY_BLOCK), args);
}
