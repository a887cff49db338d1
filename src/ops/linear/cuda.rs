pub(in crate::ops::linear) mod hopper;

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{Adapted, InputGrad, Lora, LoraGrad, Then};
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, suffix, type_code};
use crate::device::{DType, Device, Tensor};
use crate::ops::activation::Activation;
use crate::ops::adaln::Chunk;

/// Problems of one launch.
const PROBLEMS: usize = 16;
/// Ranks are filled up with zeros to multiples of what a stage of the kernels holds, so that the numbers of an addition
/// meet in the same instructions whatever was added before.
const RANK: usize = 32;

/// Partial sums of gradients: at most so many, of at least so many rows.
const CHUNKS: usize = 16;
const CHUNK: usize = 512;

/// As in kernels/linear.cu: what is done to a result; 0 is nothing.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    GeluTanh = 1,
    GeluErf,
    QuickGelu,
    Silu,
    Add,
    AddGated,
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Problem {
    x: DevicePtr,
    w: DevicePtr,
    bias: DevicePtr,
    y: DevicePtr,
    begin: u32,
    m: u32,
    n: u32,
    k: u32,
    ldx: u32,
    ldw: u32,
    first_extra: u32,
    extras: u32,
    scale: f32,
    pad: u32,
}

/// As in kernels/linear.cu: `Then`.
#[derive(Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
struct Finish {
    hidden: DevicePtr,
    residual: DevicePtr,
    gate: DevicePtr,
    kept: u32,
    per_sample: u32,
    gate_stride: u32,
    kind: u32,
    dtype: u32,
    tiles: u32,
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Products {
    problems: [Problem; PROBLEMS],
    then: Finish,
}

/// As in kernels/common/gemm.cuh.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Extra {
    a: DevicePtr,
    b: DevicePtr,
    lda: u32,
    ldb: u32,
    first: u32,
    end: u32,
    depth: u32,
    pad: u32,
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Gradient {
    a: DevicePtr,
    b: DevicePtr,
    out: DevicePtr,
    m: u32,
    n: u32,
    lda: u32,
    ldb: u32,
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Gradients {
    of: [Gradient; 2],
    rows: u32,
    chunk: u32,
    chunks: u32,
    pad: u32,
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Packing {
    from: DevicePtr,
    to: DevicePtr,
    rows: u32,
    columns: u32,
    to_rows: u32,
    to_columns: u32,
    dtype: u32,
    pad: u32,
}

/// A matrix as the kernels take it: rows begin at multiples of 16 bytes.
#[derive(Clone, Copy)]
pub(in crate::ops::linear) struct Matrix {
    pub at: DevicePtr,
    /// Elements from row to row.
    pub ld: u32,
}

/// The type that is computed in: that of the weight where the activations are of it or can be rounded to it, else f32.
/// Gradients have not the range of f16, so that they and the weight are rounded to bf16.
fn computed_in(weight: DType, activations: DType, gradients: bool) -> DType {
    match (weight, activations) {
        (DType::F16, DType::F32) if gradients => DType::Bf16,
        (_, DType::F32) => weight,
        _ if weight == activations => weight,
        _ => DType::F32,
    }
}

/// A dimension as kernels take it.
fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a dimension of a layer")
}

/// Matrices on their way to the type that is computed in.
struct Packer {
    gpu: Arc<Gpu>,
    dtype: DType,
    jobs: Vec<Packing>,
    /// What was packed, for as long as it is needed.
    packed: Vec<Tensor>,
}

impl Packer {
    fn new(on: &Tensor, dtype: DType) -> Self {
        Self { gpu: on.gpu(), dtype, jobs: Vec::new(), packed: Vec::new() }
    }

    /// Elements of 16 bytes.
    fn step(&self) -> usize {
        16 / self.dtype.bytes(1)
    }

    /// `t` with all axes but the last folded: where it lies, if kernels can take it from there.
    fn matrix(&mut self, t: &Tensor) -> Matrix {
        let step = self.step();
        if t.dtype() == self.dtype && t.width().is_multiple_of(step) && t.address().is_multiple_of(16) {
            return Matrix { at: t.address(), ld: size(t.width()) };
        }
        self.filled(t, t.rows(), t.width().next_multiple_of(step))
    }

    /// A weight `[out, ..]`, its other axes folded.
    fn weight(&mut self, w: &Tensor) -> Matrix {
        self.matrix(&w.view(0, &[w.dim(0), w.len() / w.dim(0).max(1)]))
    }

    /// `t` with zeros up to so many rows and columns.
    fn filled(&mut self, t: &Tensor, rows: usize, columns: usize) -> Matrix {
        let to = Tensor::scratch_of(&t.device(), self.dtype, &[rows, columns]);
        let job = packing(t, &to, [t.rows(), t.width()], [rows, columns]);
        self.jobs.push(job);
        let matrix = Matrix { at: to.address(), ld: size(columns) };
        self.packed.push(to);
        matrix
    }

    /// `A` `[rank, in]`, the rank filled up.
    fn down(&mut self, a: &Tensor) -> Matrix {
        self.filled(a, a.rows().next_multiple_of(RANK), a.width().next_multiple_of(self.step()))
    }

    /// `B` `[out, rank]`, the rank filled up.
    fn up(&mut self, b: &Tensor) -> Matrix {
        self.filled(b, b.rows(), b.width().next_multiple_of(RANK))
    }

    fn run(&mut self) {
        pack(&self.gpu, self.dtype, &std::mem::take(&mut self.jobs));
    }
}

fn packing(from: &Tensor, to: &Tensor, [rows, columns]: [usize; 2], [to_rows, to_columns]: [usize; 2]) -> Packing {
    Packing {
        from: from.address(),
        to: to.address(),
        rows: size(rows),
        columns: size(columns),
        to_rows: size(to_rows),
        to_columns: size(to_columns),
        dtype: type_code(from.dtype()),
        pad: 0,
    }
}

fn pack(gpu: &Arc<Gpu>, dtype: DType, jobs: &[Packing]) {
    /// Blocks from which on a matrix has a launch of its own; the others share one as wide as the largest.
    const LARGE: usize = 256;
    let blocks =
        |j: &Packing| (j.to_rows as usize * (j.to_columns as usize).div_ceil(16 / dtype.bytes(1))).div_ceil(256);
    let (large, small): (Vec<Packing>, Vec<Packing>) = jobs.iter().partition(|j| blocks(j) >= LARGE);
    for jobs in large.chunks(1).chain([&small[..]]) {
        let most = jobs.iter().map(blocks).max().unwrap_or(0);
        if most > 0 {
            let table = gpu.table(jobs);
            let grid = Grid::of([most, 1, jobs.len()], 256);
            gpu.launch("linear", &format!("linear_pack_{}", suffix(dtype)), grid, [Arg::from(&table)]);
        }
    }
}

/// How the weight of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops::linear) enum Weight {
    /// `[n, k]`.
    Along,
    /// `[k, n]`.
    Across,
}

/// Launches products that differ in nothing but their operands.
fn products(gpu: &Arc<Gpu>, dtype: DType, weight: Weight, problems: &[Problem], extras: &[Extra], then: Finish) {
    let (on_hopper, problems) = hopper::split(gpu, dtype, weight, problems, extras, &then);
    hopper::launch(gpu, dtype, &on_hopper);
    if problems.is_empty() {
        return;
    }
    let table = (!extras.is_empty()).then(|| gpu.table(extras));
    for problems in problems.chunks(PROBLEMS) {
        let (n, m) = (problems.iter().map(|p| p.n).max(), problems.iter().map(|p| p.m - p.begin).max());
        let (Some(n @ 1..), Some(m @ 1..)) = (n, m) else { continue };
        // Not by the number of rows: a row has the same bits in every batch.
        let tile = if dtype != DType::F32 && n >= 256 { 128 } else { 64 };
        let tiles = n.div_ceil(tile);
        let mut args = Products { problems: [Problem::zeroed(); PROBLEMS], then: Finish { tiles, ..then } };
        args.problems[..problems.len()].copy_from_slice(problems);
        let kind = match weight {
            Weight::Along => "nt",
            Weight::Across => "nn",
        };
        let grid = Grid::of([problems.len() * tiles as usize, m.div_ceil(tile) as usize, 1], 256);
        let extra = table.as_ref().map_or(Arg::Ptr(0), Arg::from);
        gpu.launch("linear", &format!("linear_{kind}_{}_{tile}", suffix(dtype)), grid, [Arg::of(&args), extra]);
    }
}

impl Finish {
    /// `then` for outputs `y`.
    fn new(then: Then, y: &Tensor) -> Self {
        let dtype = y.dtype();
        let plain = Self::plain(dtype);
        match then {
            Then::Nothing => plain,
            Then::Activate(Activation::GeluTanh) => Self { kind: Kind::GeluTanh as u32, ..plain },
            Then::Activate(Activation::GeluErf) => Self { kind: Kind::GeluErf as u32, ..plain },
            Then::Activate(Activation::QuickGelu) => Self { kind: Kind::QuickGelu as u32, ..plain },
            Then::Activate(Activation::Silu) => Self { kind: Kind::Silu as u32, ..plain },
            Then::Add(residual) => {
                assert_eq!(residual.dtype(), dtype, "linear: residual");
                Self { kind: Kind::Add as u32, residual: residual.address(), ..plain }
            }
            Then::AddGated { residual, gate: Chunk { modulation, index } } => {
                assert_eq!((residual.dtype(), modulation.dtype()), (dtype, dtype), "linear: residual and gate");
                Self {
                    kind: Kind::AddGated as u32,
                    residual: residual.address(),
                    gate: modulation.address() + dtype.bytes(index * y.width()) as u64,
                    gate_stride: size(modulation.width()),
                    per_sample: size(y.dim(1)),
                    ..plain
                }
            }
        }
    }

    /// Nothing but the type of the result.
    fn plain(dtype: DType) -> Self {
        Self { dtype: type_code(dtype), per_sample: 1, ..Self::zeroed() }
    }
}

/// Products of one kind with their low-rank additions, as they are gathered.
struct Batch {
    packer: Packer,
    lows: Vec<Problem>,
    extras: Vec<Extra>,
    mains: Vec<Problem>,
}

/// A left operand `[m, k]`.
#[derive(Clone, Copy)]
struct Left {
    matrix: Matrix,
    m: usize,
    k: usize,
}

impl Left {
    /// `scale·x·w` or `scale·x·wᵀ` of all rows, into `y`, which has `n` columns.
    fn times(self, w: Matrix, y: DevicePtr, n: usize, scale: f32) -> Problem {
        Problem {
            x: self.matrix.at,
            w: w.at,
            y,
            m: size(self.m),
            n: size(n),
            k: size(self.k),
            ldx: self.matrix.ld,
            ldw: w.ld,
            scale,
            ..Problem::zeroed()
        }
    }

    fn rows(self, rows: &Range<usize>, dtype: DType) -> Self {
        let at = self.matrix.at + dtype.bytes(rows.start * self.matrix.ld as usize) as u64;
        Self { matrix: Matrix { at, ..self.matrix }, m: rows.len(), ..self }
    }
}

impl Batch {
    fn new(on: &Tensor, dtype: DType) -> Self {
        Self { packer: Packer::new(on, dtype), lows: Vec::new(), extras: Vec::new(), mains: Vec::new() }
    }

    /// Adds `scale·(x·down)·up` for some rows to the product that is given next: `down` as the product's weight lies.
    fn add(&mut self, x: Left, rows: Range<usize>, down: Matrix, up: Matrix, rank: usize, scale: f32) -> Tensor {
        let (packer, width) = (&mut self.packer, rank.next_multiple_of(RANK));
        let low = Tensor::scratch_of(&Device::Gpu(packer.gpu.clone()), packer.dtype, &[rows.len(), width]);
        self.lows.push(x.rows(&rows, packer.dtype).times(down, low.address(), width, scale));
        self.extras.push(Extra {
            a: low.address(),
            b: up.at,
            lda: size(width),
            ldb: up.ld,
            first: size(rows.start),
            end: size(rows.end),
            depth: size(width),
            pad: 0,
        });
        low
    }

    /// A product with the additions since the last one.
    fn push(&mut self, problem: Problem) {
        let first = self.mains.last().map_or(0, |p| p.first_extra + p.extras);
        self.mains.push(Problem { first_extra: first, extras: size(self.extras.len()) - first, ..problem });
    }

    /// Launches everything.
    fn run(&mut self, weight: Weight, then: Finish) {
        let Packer { gpu, dtype, .. } = &self.packer;
        let (gpu, dtype) = (gpu.clone(), *dtype);
        self.packer.run();
        products(&gpu, dtype, weight, &self.lows, &[], Finish::plain(dtype));
        products(&gpu, dtype, weight, &self.mains, &self.extras, then);
    }
}

/// `outputs[i] = then(layers[i](x))`; what the last layer gives before `then` also goes to `hidden`, as far as that has
/// rows. Low-rank factors are rounded as the weights are.
pub(super) fn forward(
    outputs: &mut [&mut Tensor],
    hidden: Option<&mut Tensor>,
    _: &mut [&mut Vec<Tensor>],
    x: &Tensor,
    layers: &[Adapted],
    then: Then,
) {
    let per_sample = x.rows() / x.dim(0).max(1);
    let mut finish = Finish::new(then, outputs[0]);
    if let Some(hidden) = hidden.filter(|h| !h.is_empty()) {
        (finish.kept, finish.hidden) = (size(hidden.rows()), hidden.address_mut());
    }
    // Layers of one input are of one type but where a file mixes them.
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let of = |l: &Adapted| computed_in(l.layer.weight.dtype(), x.dtype(), false) == dtype;
        let mut chosen = layers.iter().zip(outputs.iter_mut()).filter(|(l, _)| of(l)).peekable();
        if chosen.peek().is_none() {
            continue;
        }
        let mut batch = Batch::new(x, dtype);
        let left = Left { matrix: batch.packer.matrix(x), m: x.rows(), k: x.width() };
        let mut kept = Vec::new();
        for (Adapted { layer, lora }, y) in chosen {
            let w = batch.packer.weight(layer.weight);
            let bias = layer.bias.map_or(0, Tensor::address);
            let all = Problem { bias, ..left.times(w, y.address_mut(), layer.weight.dim(0), 1.0) };
            for samples in runs(lora, x.dim(0)) {
                let rows = samples.start * per_sample..samples.end * per_sample;
                let (begin, m) = (size(rows.start), size(rows.end));
                if let Some(l) = lora.iter().find(|l| l.samples == samples) {
                    let (down, up) = (batch.packer.down(&l.a), batch.packer.up(&l.b));
                    kept.push(batch.add(left, rows, down, up, l.a.dim(0), l.scale));
                }
                batch.push(Problem { begin, m, ..all });
            }
        }
        batch.run(Weight::Along, finish);
    }
}

/// The samples in runs that go through the same factors or none.
fn runs(lora: &[Lora], samples: usize) -> impl Iterator<Item = Range<usize>> {
    let mut edges: Vec<usize> = lora.iter().flat_map(|l| [l.samples.start, l.samples.end]).collect();
    edges.extend([0, samples]);
    edges.sort_unstable();
    edges.dedup();
    (1..edges.len()).map(move |i| edges[i - 1]..edges[i])
}

pub(super) fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<(&Lora, &mut (Tensor, Option<Tensor>))>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    let (outputs, inputs, m) = (weight.dim(0), weight.dim(1), dy.rows());
    let dtype = computed_in(weight.dtype(), dy.dtype(), true);
    let dx = match dx {
        InputGrad::Skip => None,
        InputGrad::Overwrite(dx) => Some((dx, false)),
        InputGrad::Add(dx) => Some((dx, true)),
    };
    if m == 0 || (dx.is_none() && lora.is_none()) {
        return;
    }
    // dx = dy·W + u·A, u = s·dy·B
    let mut batch = Batch::new(dy, dtype);
    let left = Left { matrix: batch.packer.matrix(dy), m, k: outputs };
    let lora = lora.map(|(l, _)| {
        let (down, up) = (batch.packer.down(&l.a), batch.packer.up(&l.b));
        let u = batch.add(left, 0..m, up, down, l.a.dim(0), l.scale);
        (l, down, u)
    });
    let mut finish = Finish::plain(dtype);
    if let Some((dx, add)) = dx {
        let w = batch.packer.weight(weight);
        batch.push(left.times(w, dx.address_mut(), inputs, 1.0));
        finish = Finish::plain(dx.dtype());
        if add {
            (finish.kind, finish.residual) = (Kind::Add as u32, dx.address());
        }
    }
    batch.run(Weight::Across, finish);
    let (Some((l, down, u)), Some(grad), Some(x)) = (lora, grad, x) else { return };

    // dB = dyᵀ·t and dA = uᵀ·x, t = s·x·Aᵀ
    let mut again = Batch::new(x, dtype);
    let (x, rank) = (Left { matrix: again.packer.matrix(x), m, k: inputs }, l.a.dim(0));
    let t = again.add(x, 0..m, down, down, rank, l.scale);
    again.run(Weight::Along, Finish::plain(dtype));
    let chunk = m.div_ceil(CHUNKS).next_multiple_of(RANK).max(CHUNK);
    let chunks = m.div_ceil(chunk);
    let partial = |of: &Tensor| Tensor::scratch(&of.device(), &[chunks, of.len()]);
    let (partial_a, partial_b) = (partial(&l.a), partial(&l.b));
    let low = |t: &Tensor| Matrix { at: t.address(), ld: size(t.width()) };
    let of = |a: Matrix, b: Matrix, out: &Tensor, m: usize, n: usize| Gradient {
        a: a.at,
        b: b.at,
        out: out.address(),
        m: size(m),
        n: size(n),
        lda: a.ld,
        ldb: b.ld,
    };
    let of = [of(low(&u), x.matrix, &partial_a, rank, inputs), of(left.matrix, low(&t), &partial_b, outputs, rank)];
    let [tiles_m, tiles_n] = [of.map(|g| g.m), of.map(|g| g.n)].map(|s| s[0].max(s[1]).div_ceil(64) as usize);
    let args = Gradients { of, rows: size(m), chunk: size(chunk), chunks: size(chunks), pad: 0 };
    let grid = Grid::of([tiles_n, tiles_m, 2 * chunks], 256);
    let gpu = dy.gpu();
    gpu.launch("linear", &format!("linear_tn_{}_64", suffix(dtype)), grid, [Arg::of(&args)]);

    let at = |first: usize| Arg::Ptr(grad.flat.address() + DType::F32.bytes(first) as u64);
    let (to_a, to_b) = (at(grad.a), at(grad.b));
    let _ = grad.flat.arg_mut();
    let longest = l.a.len().max(l.b.len());
    let grid = Grid::of([longest.div_ceil(256), 2, 1], 256);
    let args = [to_a, to_b, partial_a.arg(), partial_b.arg(), size(l.a.len()).into(), size(l.b.len()).into()];
    gpu.launch("linear", "linear_sum", grid, args.into_iter().chain([size(chunks).into()]));
}

pub(super) fn merge(merged: &mut Tensor, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let (outputs, inputs, rank) = (weight.dim(0), a.width(), a.dim(0));
    let grid = Grid::of([inputs.div_ceil(256), outputs, 1], 256);
    let args = [weight.arg(), a.arg(), b.arg(), scale.into(), size(inputs).into(), size(rank).into()];
    let entry = format!("linear_merge_{}", suffix(weight.dtype()));
    weight.gpu().launch("linear", &entry, grid, [merged.arg_mut()].into_iter().chain(args));
}

pub(super) fn round(out: &mut Tensor, weight: &Tensor) {
    let _ = out.arg_mut();
    let flat = [1, weight.len()];
    pack(&weight.gpu(), out.dtype(), &[packing(weight, out, flat, flat)]);
}
