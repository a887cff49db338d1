//! Launches of `kernels/linear.sm_90a.cu`: lists of products of halves, each with what follows it, by persistent blocks.
//!
//! A row's bits depend on the row, the weight and the additions alone: every element is one chain in one order, and which tile
//! computes it is chosen by the width of the result.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::pack::Matrix;
use super::portable::{Extra, Job, Norm, Weight};
use super::{map, portable, size};
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, Swizzle, suffix, type_code};
use crate::device::{DType, Tensor};
use crate::ops::activation::Activation;

/// Products of one launch: queries, keys and values of image and text, of three kinds of rows, and some more.
const MOST: usize = 24;
/// Rows of a tile.
const ROWS: usize = 128;
/// Depth of a stage, and rows and columns of a box of results.
const BOX: usize = 64;
/// Columns of a head that can be normalised: a box is one.
pub(in crate::ops::linear) const HEAD: usize = BOX;
/// Rows of tiles that are walked column by column: 12 by 11 tiles are at work on 132 multiprocessors, and what they read,
/// some 11 MB at a depth of 1536, is in the second-level cache.
const GROUP: u32 = 12;

/// `then(scale·(x·w + t·b) + bias)`, into `y` `[m, n]`; all but `bias` of the type that is computed in.
#[derive(Clone, Copy)]
pub(in crate::ops::linear) struct Product {
    /// `[m, k]`.
    pub x: Matrix,
    pub m: usize,
    pub k: usize,
    /// `[n, k]` if it lies along, `[k, n]` if across.
    pub w: Matrix,
    pub lies: Weight,
    pub n: usize,
    pub extra: Option<Low>,
    pub scale: f32,
    /// `[n]` in f32, or 0.
    pub bias: DevicePtr,
    pub y: Matrix,
    pub then: Epilogue,
}

/// A low-rank addition of all rows of a product. Rows of several factors, or of some and of none, are products apart, so that
/// what is not finite in factors stays with their rows.
#[derive(Clone, Copy)]
pub(in crate::ops::linear) struct Low {
    /// `[m, depth]`.
    pub t: Matrix,
    /// As `w` lies.
    pub b: Matrix,
    /// Any number; the kernels count in stages of 64 and fill up with zeros.
    pub depth: usize,
}

/// Where the first rows of something go.
#[derive(Clone, Copy)]
pub(in crate::ops::linear) struct Kept {
    pub rows: usize,
    /// `[rows, n]`.
    pub to: Matrix,
}

impl Kept {
    pub const NOTHING: Self = Self { rows: 0, to: Matrix { at: 0, ld: 0 } };
}

/// What is done to a result, in f32, before it is rounded.
#[derive(Clone, Copy)]
pub(in crate::ops::linear) enum Epilogue {
    Nothing,
    /// `activation(v)`, and `v` of some rows.
    Activate {
        activation: Activation,
        kept: Kept,
    },
    /// `residual + v`.
    Add {
        residual: Matrix,
    },
    /// `residual + gate·v`; the gate of row `i` begins at element `i / per_sample · stride`.
    AddGated {
        residual: Matrix,
        gate: DevicePtr,
        stride: usize,
        per_sample: usize,
    },
    /// `v / rms(v) · weight` of `v` as it is stored, of heads of [`HEAD`] columns, `rms(v)² = mean(v²) + eps`, with `weight`
    /// `[HEAD]` in f32; and of some rows `v`, and `1 / rms` into `inverse` `[rows, heads]` in f32, or 0.
    Normalise {
        weight: DevicePtr,
        eps: f32,
        kept: Kept,
        inverse: DevicePtr,
    },
    /// `v·gelu'(hidden)`, of the approximation by a tanh.
    GeluBackward {
        hidden: Matrix,
    },
}

/// As in kernels/linear.sm_90a.cu.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Nothing,
    Sigmoid,
    GeluErf,
    Add,
    AddGated,
    Normalise,
    GeluBackward,
}

type Map = [u64; 16];

/// As in kernels/linear.sm_90a.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Problem {
    x: Map,
    w: Map,
    t: Map,
    b: Map,
    y: Map,
    aux: Map,
    bias: DevicePtr,
    gate: DevicePtr,
    weight: DevicePtr,
    inverse: DevicePtr,
    bundle: u32,
    end: u32,
    m: u32,
    n: u32,
    steps: u32,
    extra_steps: u32,
    kind: u32,
    kept: u32,
    per_sample: u32,
    gate_stride: u32,
    scale: f32,
    eps: f32,
    linear: f32,
    cubic: f32,
    pad: [u32; 10],
}

/// As in kernels/linear.sm_90a.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C, align(64))]
struct Products {
    problems: [Problem; MOST],
    tiles: u32,
    group: u32,
    pad: [u32; 14],
}

/// One way to do a launch: the results are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Columns of a tile.
    pub columns: usize,
    /// What its entries' names end with.
    pub name: &'static str,
    /// Rows of tiles that are walked together.
    pub group: u32,
}

/// What low-rank products and narrow results go through: a tile as wide as they are reads what it multiplies once.
const NARROW: Variant = Variant { columns: 64, name: "64", group: GROUP };
/// 53 bytes of operands a clock at the full rate of the matrix units, and room for four stages and a whole tile of results.
const MIDDLE: Variant = Variant { columns: 192, name: "192", group: GROUP };
/// 48 bytes a clock; as many stages leave room for half a tile of results.
const WIDE: Variant = Variant { columns: 256, name: "256", group: GROUP };

/// The tile for results of `n` columns: that which computes the fewest columns that do not exist, and of equals the wide one
/// where there are enough of its tiles to go round. The depth does not matter, as all have stages of the same depth, and the
/// number of rows may not: a row has the same bits in every batch.
pub(in crate::ops::linear) fn tile(n: usize) -> Variant {
    let [middle, wide] = [MIDDLE, WIDE].map(|v| n.next_multiple_of(v.columns));
    match n {
        0..=128 => NARROW,
        _ if wide < middle || (wide == middle && n >= 4608) => WIDE,
        _ => MIDDLE,
    }
}

/// Whether kernels can be given `m`: bulk copies go by rows that begin at multiples of 16 bytes.
fn is_even(m: Matrix) -> bool {
    m.at.is_multiple_of(16) && m.ld.is_multiple_of(8)
}

impl Product {
    /// Whether the kernels take it.
    pub fn fits(&self) -> bool {
        let followed = match self.then {
            Epilogue::Nothing => true,
            Epilogue::Activate { kept, .. } => is_even(kept.to),
            Epilogue::Add { residual } => is_even(residual),
            Epilogue::AddGated { residual, gate, stride, .. } => {
                is_even(residual) && gate.is_multiple_of(4) && stride.is_multiple_of(2)
            }
            Epilogue::Normalise { kept, .. } => is_even(kept.to) && self.n.is_multiple_of(BOX),
            Epilogue::GeluBackward { hidden } => is_even(hidden),
        };
        let low = self.extra.is_none_or(|e| is_even(e.t) && is_even(e.b));
        let backward = matches!(self.lies, Weight::Across);
        let has_it = match self.then {
            Epilogue::Nothing | Epilogue::Add { .. } => true,
            Epilogue::GeluBackward { .. } => backward,
            _ => !backward,
        };
        followed && low && has_it && [self.x, self.w, self.y].into_iter().all(is_even) && self.n.is_multiple_of(8)
    }

    fn tiles(&self, columns: usize) -> usize {
        self.m.div_ceil(ROWS) * self.n.div_ceil(columns)
    }

    /// Whether tiles of `other` can lie beside its own.
    fn goes_with(&self, other: &Self) -> bool {
        let of = |p: &Self| (p.x.at, p.x.ld, p.m, p.k, p.n, p.lies);
        of(self) == of(other)
    }

    /// Its maps and numbers, for tiles of so many columns.
    fn problem(&self, gpu: &Gpu, dtype: DType, columns: usize) -> Problem {
        let map = |of, of_size, tile| map(gpu, dtype, of, of_size, tile, Swizzle::B128);
        let left = |of, depth| map(of, [self.m, depth], [ROWS, BOX]);
        let right = |of, depth| match self.lies {
            Weight::Along => map(of, [self.n, depth], [columns, BOX]),
            Weight::Across => map(of, [depth, self.n], [BOX, BOX]),
        };
        let result = |of, rows| map(of, [rows, self.n], [BOX, BOX]);
        let mut p = Problem {
            x: left(self.x, self.k),
            w: right(self.w, self.k),
            y: result(self.y, self.m),
            bias: self.bias,
            m: size(self.m),
            n: size(self.n),
            steps: size(self.k.div_ceil(BOX)),
            per_sample: 1,
            scale: self.scale,
            ..Problem::zeroed()
        };
        if let Some(Low { t, b, depth }) = self.extra {
            (p.t, p.b, p.extra_steps) = (left(t, depth), right(b, depth), size(depth.div_ceil(BOX)));
        }
        let mut keep = |kept: Kept| {
            if kept.rows > 0 {
                (p.aux, p.kept) = (result(kept.to, kept.rows), size(kept.rows));
            }
        };
        let kind = match self.then {
            Epilogue::Nothing => Kind::Nothing,
            Epilogue::Activate { activation, kept } => {
                keep(kept);
                match sigmoid(activation) {
                    Some(inner) => {
                        [p.linear, p.cubic] = inner;
                        Kind::Sigmoid
                    }
                    None => Kind::GeluErf,
                }
            }
            Epilogue::Add { residual } => {
                p.aux = result(residual, self.m);
                Kind::Add
            }
            Epilogue::AddGated { residual, gate, stride, per_sample } => {
                p.aux = result(residual, self.m);
                (p.gate, p.gate_stride, p.per_sample) = (gate, size(stride), size(per_sample));
                Kind::AddGated
            }
            Epilogue::Normalise { weight, eps, kept, inverse } => {
                keep(kept);
                (p.weight, p.eps, p.inverse) = (weight, eps, inverse);
                Kind::Normalise
            }
            Epilogue::GeluBackward { hidden } => {
                p.aux = result(hidden, self.m);
                [p.linear, p.cubic] = sigmoid(Activation::GeluTanh).expect("it is one");
                Kind::GeluBackward
            }
        };
        Problem { kind: kind as u32, ..p }
    }
}

/// The factors of `v` and `v³` in what an activation `v·sigmoid(..)` takes, by -log₂e; none if it is not of that form.
fn sigmoid(activation: Activation) -> Option<[f32; 2]> {
    let [linear, cubic] = match activation {
        Activation::GeluTanh => {
            let linear = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            [linear, 0.044715 * linear]
        }
        Activation::QuickGelu => [1.702, 0.0],
        Activation::Silu => [1.0, 0.0],
        Activation::GeluErf => return None,
    };
    Some([linear, cubic].map(|v| (-std::f64::consts::LOG2_E * v) as f32))
}

/// Does all products, none of which reads what another gives.
pub(in crate::ops::linear) fn launch(gpu: &Arc<Gpu>, dtype: DType, products: &[Product]) {
    for variant in [NARROW, MIDDLE, WIDE] {
        let of: Vec<_> = products.iter().filter(|p| tile(p.n) == variant).copied().collect();
        launch_as(gpu, dtype, variant, &of);
    }
}

/// As [`launch`], by one variant.
pub(in crate::ops::linear) fn launch_as(gpu: &Arc<Gpu>, dtype: DType, variant: Variant, products: &[Product]) {
    let columns = variant.columns;
    for (lies, name) in [(Weight::Along, "nt"), (Weight::Across, "nn")] {
        let of = products.iter().filter(|p| p.lies == lies && p.tiles(columns) > 0);
        for products in bundles(of).chunks(MOST) {
            let mut args =
                Products { problems: [Problem::zeroed(); MOST], tiles: 0, group: variant.group, pad: [0; 14] };
            for (problem, product) in args.problems.iter_mut().zip(products) {
                *problem = product.problem(gpu, dtype, columns);
            }
            let mut first = 0;
            for bundle in products.chunk_by(|a, b| a.goes_with(b)) {
                args.tiles += size(bundle.len() * bundle[0].tiles(columns));
                let head = &mut args.problems[first];
                (head.bundle, head.end) = (size(bundle.len()), args.tiles);
                first += bundle.len();
            }
            let blocks = args.tiles.min(gpu.facts().processors) as usize;
            let entry = format!("linear_wgmma_{name}_{}_{}", suffix(dtype), variant.name);
            gpu.launch("linear", &entry, Grid::of([blocks, 1, 1], 384), [Arg::of(&args)]);
        }
    }
}

/// The products, those of one input and one width after one another: their tiles are walked as if of one product, so that the
/// input is read once.
fn bundles<'a>(products: impl Iterator<Item = &'a Product>) -> Vec<Product> {
    let mut bundles: Vec<Vec<Product>> = Vec::new();
    for p in products {
        match bundles.iter_mut().find(|b| b[0].goes_with(p)) {
            Some(bundle) => bundle.push(*p),
            None => bundles.push(vec![*p]),
        }
    }
    bundles.concat()
}

/// Ways to multiply bf16 that are worth a comparison on a GPU: tiles, stages, and how many rows of tiles are walked together.
pub fn variants() -> Vec<Variant> {
    let stages = [(192, "192_s3"), (192, "192_s5"), (256, "256_s3")];
    let stages = stages.map(|(columns, name)| Variant { columns, name, group: GROUP });
    let groups = [4, 8, 16, 32].map(|group| Variant { group, ..MIDDLE });
    [NARROW, MIDDLE, WIDE].into_iter().chain(stages).chain(groups).collect()
}

/// `x·wᵀ` of `x` `[.., in]` and `w` `[out, in]` in bf16 on a GPU for Hopper, by one variant: for benchmarks.
pub fn product_by(variant: Variant, x: &Tensor, w: &Tensor) -> Tensor {
    let (m, k, n) = (x.rows(), x.width(), w.dim(0));
    let mut y = x.scratch_like(&[m, n]);
    let matrix = |at, width| Matrix { at, ld: size(width) };
    let product = Product {
        x: matrix(x.address(), k),
        m,
        k,
        w: matrix(w.address(), k),
        lies: Weight::Along,
        n,
        extra: None,
        scale: 1.0,
        bias: 0,
        y: matrix(y.address_mut(), n),
        then: Epilogue::Nothing,
    };
    assert!(w.width() == k && x.dtype() == DType::Bf16 && w.dtype() == DType::Bf16 && product.fits(), "{x:?} by {w:?}");
    launch_as(&x.gpu(), DType::Bf16, variant, &[product]);
    y
}

/// Whether the kernels take a norm of the heads of `y`, whatever it is the norm of.
pub(super) fn normalises(gpu: &Gpu, dtype: DType, y: &Tensor, norm: &Norm) -> bool {
    let fits = norm.width == HEAD && y.width().is_multiple_of(HEAD) && norm.weight.is_multiple_of(8);
    gpu.is_hopper() && dtype != DType::F32 && y.dtype() == dtype && fits
}

/// The jobs that the kernels take, as products, and the others.
pub(super) fn split(
    gpu: &Gpu,
    dtype: DType,
    lies: Weight,
    jobs: Vec<Job>,
    extras: &[Extra],
) -> (Vec<Product>, Vec<Job>) {
    let (mut products, mut others) = (Vec::new(), Vec::new());
    for job in jobs {
        // A product of no depth has no maps.
        let has_depth = job.problem.k > 0;
        let usable = gpu.is_hopper() && has_depth && dtype != DType::F32 && job.then.dtype == type_code(dtype);
        match usable.then(|| product(dtype, lies, &job, extras)).flatten().filter(Product::fits) {
            Some(product) => products.push(product),
            None => {
                assert!(job.norm.is_none(), "a norm is given to kernels that take it");
                others.push(job);
            }
        }
    }
    (products, others)
}

fn product(dtype: DType, lies: Weight, job: &Job, extras: &[Extra]) -> Option<Product> {
    let (p, then) = (&job.problem, &job.then);
    let at = |base: DevicePtr, element: usize| base + dtype.bytes(element) as u64;
    let begin = p.begin as usize;
    // Of results, and of what is shaped as they are.
    let rows = |base| Matrix { at: at(base, begin * p.n as usize), ld: p.n };
    let extra = match &extras[p.first_extra as usize..][..p.extras as usize] {
        [] => None,
        [e] if e.first == p.begin && e.end == p.m => {
            Some(Low { t: Matrix { at: e.a, ld: e.lda }, b: Matrix { at: e.b, ld: e.ldb }, depth: e.depth as usize })
        }
        _ => return None,
    };
    Some(Product {
        x: Matrix { at: at(p.x, begin * p.ldx as usize), ld: p.ldx },
        m: (p.m - p.begin) as usize,
        k: p.k as usize,
        w: Matrix { at: p.w, ld: p.ldw },
        lies,
        n: p.n as usize,
        extra,
        scale: p.scale,
        bias: p.bias,
        y: rows(p.y),
        then: epilogue(dtype, job, rows(then.residual), rows(then.hidden)),
    })
}

/// What is done to a product, of whose first row on are `residual` and `hidden`.
fn epilogue(dtype: DType, job: &Job, residual: Matrix, hidden: Matrix) -> Epilogue {
    use portable::Kind;
    let Job { problem: p, then, norm } = job;
    let begin = p.begin as usize;
    let kept = match then.kept.clamp(p.begin, p.m) - p.begin {
        0 => Kept::NOTHING,
        rows => Kept { rows: rows as usize, to: hidden },
    };
    if let Some(Norm { weight, width, eps, inverse }) = *norm {
        let heads = p.n as usize / width;
        let inverse = inverse + DType::F32.bytes(begin * heads) as u64;
        return Epilogue::Normalise { weight, eps, kept, inverse };
    }
    let activate = |activation| Epilogue::Activate { activation, kept };
    match Kind::of(*then) {
        None => Epilogue::Nothing,
        Some(Kind::GeluTanh) => activate(Activation::GeluTanh),
        Some(Kind::GeluErf) => activate(Activation::GeluErf),
        Some(Kind::QuickGelu) => activate(Activation::QuickGelu),
        Some(Kind::Silu) => activate(Activation::Silu),
        Some(Kind::Add) => Epilogue::Add { residual },
        Some(Kind::ThroughGelu) => Epilogue::GeluBackward { hidden: residual },
        Some(Kind::AddGated) => {
            let (stride, per_sample) = (then.gate_stride as usize, then.per_sample as usize);
            let gate = then.gate + dtype.bytes(begin / per_sample * stride) as u64;
            Epilogue::AddGated { residual, gate, stride, per_sample }
        }
    }
}
