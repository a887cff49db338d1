use super::{Heads, Mask, OutputGrad, Part, PartGrad};
use crate::device::gpu::driver::DevicePtr;
use crate::device::gpu::{Arg, Grid};
use crate::device::{DType, Tensor};

/// Most parts a sequence has here.
const PARTS: usize = 4;

/// Tokens that a block has.
const TILE: usize = 64;

/// `Part` of kernels/common/attention.cuh.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct PartArg {
    q: DevicePtr,
    k: DevicePtr,
    v: DevicePtr,
    dout: DevicePtr,
    out: DevicePtr,
    dq: DevicePtr,
    dk: DevicePtr,
    dv: DevicePtr,
    n: u32,
    queries: u32,
    first: u32,
    stats: u32,
}

/// `Sequence` of kernels/common/attention.cuh.
#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Sequence {
    part: [PartArg; PARTS],
    parts: u32,
    n: u32,
    heads: u32,
    d: u32,
    stats: u32,
    vectors: u32,
    scale: f32,
    wide: u32,
}

fn small(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of attention fit 32 bits")
}

impl Sequence {
    fn new(parts: &[Part], heads: Heads) -> Self {
        assert!(parts.len() <= PARTS, "attention: {} parts; on a GPU at most {PARTS}", parts.len());
        let mut part = [PartArg::default(); PARTS];
        let mut n = 0;
        for (to, p) in part.iter_mut().zip(parts) {
            let [q, k, v] = [p.q, p.k, p.v].map(Tensor::address);
            let tokens = small(p.q.dim(1));
            *to = PartArg { q, k, v, n: tokens, queries: tokens, first: n, ..PartArg::default() };
            n += tokens;
        }
        let (heads, d, scale) = (small(heads.count), small(parts[0].q.dim(2) / heads.count), heads.scale);
        Self { part, parts: small(parts.len()), n, heads, d, stats: 0, vectors: 0, scale, wide: 0 }
    }

    /// With `vectors` set once all addresses are there.
    fn ready(mut self) -> Arg {
        let addresses = self.part.iter().flat_map(|p| [p.q, p.k, p.v, p.dout, p.out, p.dq, p.dk, p.dv]);
        self.vectors = u32::from(self.d.is_multiple_of(4) && addresses.fold(0, |all, a| all | a).is_multiple_of(16));
        Arg::of(&self)
    }

    /// Blocks for tiles of the tokens that `of` counts, for all heads and samples.
    fn grid(&self, of: impl Fn(&PartArg) -> u32, batch: usize, threads: u32) -> Grid {
        let tiles = self.part.iter().map(|p| of(p) as usize).map(|n| n.div_ceil(TILE)).sum();
        Grid::of([tiles, self.heads as usize, batch], threads)
    }
}

/// The entry of `name` for heads of `d`: the smallest that holds them.
fn entry(name: &str, d: u32, widths: &[u32]) -> String {
    let width = widths.iter().find(|w| d <= **w);
    let width = width.unwrap_or_else(|| panic!("{name}: heads of {d}; on a GPU at most {}", widths[widths.len() - 1]));
    format!("{name}_d{width}")
}

pub(super) fn forward(out: &mut [Tensor], lse: &mut Tensor, parts: &[Part], heads: Heads, mask: Mask) {
    let (gpu, batch) = (lse.gpu(), lse.dim(0));
    let mut s = Sequence::new(parts, heads);
    for (part, out) in s.part.iter_mut().zip(&mut *out) {
        out.arg_mut();
        part.out = out.address();
    }
    let bias = mask.bias.map_or(Arg::Ptr(0), |bias| {
        assert_eq!(bias.dtype(), DType::F32, "attention: bias {bias:?}");
        bias.arg()
    });
    let entry = entry("attention_forward_f32", s.d, &[32, 64, 128, 512]);
    let grid = s.grid(|p| p.queries, batch, 256);
    gpu.launch("attention", &entry, grid, [s.ready(), lse.arg_mut(), bias, u32::from(mask.causal).into()]);
}

pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
) {
    todo!("{} {} {} {} {}", grads.len(), outputs.len(), lse.len(), parts.len(), heads.count)
}
