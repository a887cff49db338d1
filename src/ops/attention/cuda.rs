//! Families of kernels: on tensor cores for f16 and bf16, of which Hopper has its own, and in f32. Operands of another type are
//! cast to that of the products first.

mod hopper;
mod hopper_backward;

mod wide;
mod wide_backward;

use super::{Heads, Mask, OutputGrad, Part, PartGrad};
use crate::device::gpu::driver::DevicePtr;
use crate::device::gpu::{Arg, Gpu, Grid, small, suffix};
use crate::device::{DType, Tensor};
use crate::ops::copy::cast;

pub use hopper::{Variant as ForwardVariant, variants as forward_variants};
pub use hopper_backward::{Variant as BackwardVariant, variants as backward_variants};

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
pub struct Sequence {
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

impl Sequence {
    /// Of these operands, all of one type, with results of f32 if `wide`.
    fn new(operands: &[[Tensor; 3]], heads: Heads, wide: bool) -> Self {
        assert!(operands.len() <= PARTS, "attention: {} parts; on a GPU at most {PARTS}", operands.len());
        let mut part = [PartArg::default(); PARTS];
        let mut n = 0;
        for (to, operands) in part.iter_mut().zip(operands) {
            let ([q, k, v], tokens) = (operands.each_ref().map(Tensor::address), small(operands[0].dim(1)));
            *to = PartArg { q, k, v, n: tokens, queries: tokens, first: n, ..PartArg::default() };
            n += tokens;
        }
        let d = small(operands[0][0].dim(2) / heads.count);
        let (parts, heads, scale) = (small(operands.len()), small(heads.count), heads.scale);
        Self { part, parts, n, heads, d, stats: 0, vectors: 0, scale, wide: wide.into() }
    }

    /// Queries `q` with room for what they find, and keys and values of another sequence, all in f32.
    pub fn crossing(out: &mut Tensor, q: &Tensor, [k, v]: [&Tensor; 2], heads: Heads) -> Self {
        let [m, n] = [q, k].map(|t| small(t.dim(1)));
        let mut part = [PartArg::default(); PARTS];
        part[0] = PartArg { q: q.address(), out: out.address_mut(), n: m, queries: m, ..PartArg::default() };
        part[1] = PartArg { k: k.address(), v: v.address(), n, first: m, ..PartArg::default() };
        let (d, heads, scale) = (small(q.dim(2) / heads.count), small(heads.count), heads.scale);
        Self { part, parts: 2, n: m + n, heads, d, stats: 0, vectors: 0, scale, wide: 1 }
    }

    /// Launches a kernel of an op in f32, that for the least of `widths` that holds a head, with `rest` behind the sequence.
    pub fn launch_f32(
        &self,
        gpu: &Gpu,
        [op, name]: [&'static str; 2],
        widths: &[u32],
        batch: usize,
        rest: impl IntoIterator<Item = Arg>,
    ) {
        let (entry, _) = entry(name, self.d, widths);
        let args = [self.arg(DType::F32)].into_iter().chain(rest);
        gpu.launch(op, &entry, self.grid(|p| p.queries, 64, batch, 256), args);
    }

    /// Whether operands of `dtype` can be read 16 bytes at a time.
    fn vectors(&self, dtype: DType) -> bool {
        let addresses = self.part.iter().flat_map(|p| [p.q, p.k, p.v, p.dout, p.out, p.dq, p.dk, p.dv]);
        self.d.is_multiple_of(16 / small(dtype.bytes(1))) && addresses.fold(0, |all, a| all | a).is_multiple_of(16)
    }

    /// The argument, with operands of `dtype`.
    fn arg(&self, dtype: DType) -> Arg {
        Arg::of(&Self { vectors: self.vectors(dtype).into(), ..*self })
    }

    /// As [`Sequence::arg`], for tensor cores.
    fn half_arg(&self, dtype: DType) -> Arg {
        assert!(self.vectors(dtype), "attention: operands of {dtype:?} that are not aligned to 16 bytes");
        self.arg(dtype)
    }

    /// Blocks for tiles of `tile` of the tokens that `of` counts, for all heads and samples.
    fn grid(&self, of: impl Fn(&PartArg) -> u32, tile: usize, batch: usize, threads: u32) -> Grid {
        let tiles = self.part.iter().map(|p| (of(p) as usize).div_ceil(tile)).sum();
        Grid::of([tiles, self.heads as usize, batch], threads)
    }
}

/// What the operands of products are rounded to: f32 where nothing is to be rounded, or where heads do not consist of the 16
/// bytes that are copied at a time.
fn product(q: &Tensor, heads: Heads) -> DType {
    let d = q.dim(2) / heads.count;
    if !d.is_multiple_of(8) || d > 128 {
        return DType::F32;
    }
    match (q.dtype(), heads.compute) {
        (DType::F32, compute @ (DType::F16 | DType::Bf16)) => compute,
        (_, DType::F32) => DType::F32,
        (own, _) => own,
    }
}

/// The entry of `name` for heads of `d`, and the width of it: the smallest of those there are that holds them.
fn entry(name: &str, d: u32, widths: &[u32]) -> (String, u32) {
    let width = widths.iter().find(|w| d <= **w);
    let width = width.unwrap_or_else(|| panic!("{name}: heads of {d}; on a GPU at most {}", widths[widths.len() - 1]));
    (format!("{name}_d{width}"), *width)
}

/// `results` of another type than the kernels write them in: written in f32 by `f` and then cast.
fn widened(results: &mut [&mut Tensor], wide: bool, f: impl FnOnce(&mut [&mut Tensor])) {
    if !wide {
        return f(results);
    }
    let mut own: Vec<Tensor> = results.iter().map(|t| Tensor::scratch(&t.device(), t.shape())).collect();
    f(&mut own.iter_mut().collect::<Vec<_>>());
    results.iter_mut().zip(&own).for_each(|(t, own)| **t = cast(own, t.dtype()));
}

pub(super) fn forward(out: &mut [Tensor], lse: &mut Tensor, parts: &[Part], heads: Heads, mask: Mask) {
    forward_by(None, out, lse, parts, heads, mask);
}

/// By the kernel that is asked for, if any is.
pub(super) fn forward_by(
    variant: Option<ForwardVariant>,
    out: &mut [Tensor],
    lse: &mut Tensor,
    parts: &[Part],
    heads: Heads,
    mask: Mask,
) {
    if variant.is_none() && wide::fits(out, parts, heads, mask) {
        return wide::forward(&mut out[0], lse, &parts[0], heads);
    }
    let (gpu, batch, dtype) = (lse.gpu(), lse.dim(0), out[0].dtype());
    let product = product(parts[0].q, heads);
    let operands: Vec<_> = parts.iter().map(|p| [p.q, p.k, p.v].map(|t| cast(t, product))).collect();
    let bias = mask.bias.map_or(Arg::Ptr(0), |bias| {
        assert_eq!(bias.dtype(), DType::F32, "attention: bias {bias:?}");
        bias.arg()
    });
    let narrow_later = product == DType::F32 && dtype != DType::F32;
    widened(&mut out.iter_mut().collect::<Vec<_>>(), narrow_later, |out| {
        let mut s = Sequence::new(&operands, heads, out[0].dtype() == DType::F32);
        s.part.iter_mut().zip(out).for_each(|(part, out)| part.out = out.address_mut());
        let rest = [lse.arg_mut(), bias, u32::from(mask.causal).into()];
        let args = |s| [s].into_iter().chain(rest.clone());
        if product == DType::F32 {
            s.launch_f32(&gpu, ["attention", "attention_forward_f32"], &[32, 64, 128, 512], batch, rest);
        } else {
            assert!(heads.scale > 0.0, "attention: a scale of {} on tensor cores", heads.scale);
            let masked = mask.causal || mask.bias.is_some();
            if hopper::fits(&gpu, &s, product) {
                return hopper::forward(&gpu, &s, (batch, product), variant, masked, rest);
            }
            let (name, widths): (_, &[u32]) =
                if masked { ("masked", &[32, 64, 128]) } else { ("forward", &[32, 64, 80, 128]) };
            let (entry, width) = entry(&format!("attention_mma_{name}_{}", suffix(product)), s.d, widths);
            let threads = if width <= 64 { 128 } else { 256 };
            gpu.launch("attention_mma", &entry, s.grid(|p| p.n, 128, batch, threads), args(s.half_arg(product)));
        }
    });
}

/// As [`backward`], on Hopper in one of the ways there are.
pub(super) fn backward_by(
    variant: BackwardVariant,
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
) {
    let q = parts[0].q;
    let fits = hopper_backward::fits(&lse.gpu(), outputs, parts, heads)
        && (q.dtype(), q.dim(2)) == (DType::Bf16, 64 * heads.count);
    assert!(fits, "attention backward: variants are for heads of 64 in bf16 on Hopper, not {q:?}");
    hopper_backward::backward(grads, outputs, lse, parts, heads, Some(variant));
}

pub(super) fn backward(
    grads: &mut [PartGrad],
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
) {
    if hopper_backward::fits(&lse.gpu(), outputs, parts, heads) {
        return hopper_backward::backward(grads, outputs, lse, parts, heads, None);
    }
    if let ([Some(output)], true) = (outputs, wide_backward::fits(outputs, parts, heads)) {
        return wide_backward::backward(&mut grads[0], output, lse, &parts[0], heads);
    }
    let (gpu, batch, dtype) = (lse.gpu(), lse.dim(0), grads[0].k.dtype());
    let product = product(parts[0].q, heads);
    let operands: Vec<_> = parts.iter().map(|p| [p.q, p.k, p.v].map(|t| cast(t, product))).collect();
    let douts: Vec<_> = outputs.iter().map(|o| o.map(|o| cast(o.dout, product))).collect();
    let narrow_later = product == DType::F32 && dtype != DType::F32;
    let mut results: Vec<_> =
        grads.iter_mut().flat_map(|g| [Some(&mut g.k), Some(&mut g.v), g.q.as_mut()]).flatten().collect();
    widened(&mut results, narrow_later, |results| {
        let mut s = Sequence::new(&operands, heads, results[0].dtype() == DType::F32);
        let mut results = results.iter_mut().map(|t| t.address_mut());
        let mut next = || results.next().expect("a result for each");
        for (part, output) in s.part.iter_mut().zip(outputs) {
            (part.dk, part.dv) = (next(), next());
            (part.queries, part.stats) = (0, s.stats);
            if let Some(OutputGrad { out, dout }) = output {
                (part.queries, part.dq) = (part.n, next());
                (part.out, part.dout) = (out.address(), dout.address());
                s.stats += part.n.next_multiple_of(STATS_STEP);
            }
        }
        let mut stats = Tensor::scratch(&lse.device(), &[2, batch, heads.count, s.stats as usize]);
        if s.stats > 0 {
            let entry = format!("attention_backward_statistics_{}", suffix(dtype));
            let grid = Grid::of([(s.stats as usize).div_ceil(32), heads.count, batch], 256);
            let unit = if product == DType::F32 { 1.0 } else { std::f32::consts::LOG2_E };
            let args = [s.arg(dtype), lse.arg(), stats.arg_mut(), unit.into()];
            gpu.launch("attention_backward", &entry, grid, args);
        }
        for (part, dout) in s.part.iter_mut().zip(&douts) {
            part.dout = dout.as_ref().map_or(0, Tensor::address);
        }
        let arg = if product == DType::F32 { s.arg(product) } else { s.half_arg(product) };
        for (name, of) in [("keys", (|p| p.n) as fn(&PartArg) -> u32), ("queries", |p| p.queries)] {
            let (op, entry, tile, threads) = if product == DType::F32 {
                let (entry, width) = entry(&format!("attention_backward_f32_{name}"), s.d, &[32, 64, 128]);
                ("attention_backward", entry, if width <= 64 { 64 } else { 32 }, 256)
            } else {
                let entries = format!("attention_mma_backward_{name}_{}", suffix(product));
                let (entry, width) = entry(&entries, s.d, &[32, 64, 80, 128]);
                ("attention_mma_backward", entry, if width <= 64 { 128 } else { 64 }, 128)
            };
            gpu.launch(op, &entry, s.grid(of, tile, batch, threads), [arg.clone(), stats.arg()]);
        }
    });
}
