use super::{Heads, Mask, OutputGrad, Part, PartGrad};
use crate::device::gpu::driver::DevicePtr;
use crate::device::gpu::{Arg, Grid};
use crate::device::{DType, Tensor};

/// Most parts a sequence has here.
const PARTS: usize = 4;

/// What the statistics of a part are filled up to a multiple of.
const STATS_STEP: u32 = 64;

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
    fn ready(&self) -> Arg {
        let addresses = self.part.iter().flat_map(|p| [p.q, p.k, p.v, p.dout, p.out, p.dq, p.dk, p.dv]);
        let vectors = self.d.is_multiple_of(4) && addresses.fold(0, |all, a| all | a).is_multiple_of(16);
        Arg::of(&Self { vectors: vectors.into(), ..*self })
    }

    /// Blocks for tiles of `tile` of the tokens that `of` counts, for all heads and samples.
    fn grid(&self, of: impl Fn(&PartArg) -> u32, tile: usize, batch: usize, threads: u32) -> Grid {
        let tiles = self.part.iter().map(|p| of(p) as usize).map(|n| n.div_ceil(tile)).sum();
        Grid::of([tiles, self.heads as usize, batch], threads)
    }
}

/// Where a tensor is, for writing.
fn address_mut(t: &mut Tensor) -> DevicePtr {
    t.arg_mut();
    t.address()
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
        part.out = address_mut(out);
    }
    let bias = mask.bias.map_or(Arg::Ptr(0), |bias| {
        assert_eq!(bias.dtype(), DType::F32, "attention: bias {bias:?}");
        bias.arg()
    });
    let entry = entry("attention_forward_f32", s.d, &[32, 64, 128, 512]);
    let grid = s.grid(|p| p.queries, 64, batch, 256);
    gpu.launch("attention", &entry, grid, [s.ready(), lse.arg_mut(), bias, u32::from(mask.causal).into()]);
}

pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
) {
    let (gpu, batch) = (lse.gpu(), lse.dim(0));
    let mut s = Sequence::new(parts, heads);
    for ((part, grad), output) in s.part.iter_mut().zip(grads).zip(outputs) {
        part.stats = s.stats;
        part.queries = 0;
        if let Some(OutputGrad { out, dout }) = output {
            part.queries = part.n;
            (part.out, part.dout) = (out.address(), dout.address());
            s.stats += part.n.next_multiple_of(STATS_STEP);
        }
        part.dq = grad.q.as_mut().map_or(0, address_mut);
        (part.dk, part.dv) = (address_mut(&mut grad.k), address_mut(&mut grad.v));
    }
    let mut stats = Tensor::scratch(&lse.device(), &[2, batch, heads.count, s.stats as usize]);
    let arg = s.ready();
    if s.stats > 0 {
        let grid = Grid::of([(s.stats as usize).div_ceil(256 / 8), heads.count, batch], 256);
        let args = [arg.clone(), lse.arg(), stats.arg_mut(), 1f32.into()];
        gpu.launch("attention_backward", "attention_backward_statistics_f32", grid, args);
    }
    let widths = [32, 64, 128];
    let tile = if s.d <= 64 { 64 } else { 32 };
    for (name, of) in [("keys", (|p| p.n) as fn(&PartArg) -> u32), ("queries", |p| p.queries)] {
        let entry = entry(&format!("attention_backward_f32_{name}"), s.d, &widths);
        let grid = s.grid(of, tile, batch, 256);
        if grid.blocks[0] > 0 {
            gpu.launch("attention_backward", &entry, grid, [arg.clone(), stats.arg()]);
        }
    }
}
