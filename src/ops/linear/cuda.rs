mod gradients;
pub(in crate::ops::linear) mod hopper;
mod library;
mod pack;
mod portable;

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;

use super::{Backward, Branch, Call, InputGrad, Lora, Lows, Output, Then};
use crate::device::gpu::driver::Product;
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, Swizzle, TensorMapDesc, suffix};
use crate::device::{DType, Device, Tensor, Wide};
use crate::ops::{activation, copy, rms_norm};
use gradients::Factors;
use library::Place;
pub(in crate::ops::linear) use pack::Matrix;
use pack::{Packer, RANK, pack, packing};
pub(in crate::ops::linear) use portable::Weight;
use portable::{Extra, Finish, Job, Kind, Norm, Problem};

/// What can be computed in, and whether in TF32.
const TYPES: [(DType, bool); 4] = [(DType::F32, false), (DType::F32, true), (DType::F16, false), (DType::Bf16, false)];

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

/// The type that products with `weight` are computed in, and whether in TF32.
fn arithmetic(weight: &Tensor, activations: DType, gradients: bool) -> (DType, bool) {
    let dtype = computed_in(weight.multiplied_in(), activations, gradients);
    (dtype, dtype == DType::F32 && weight.wide() == Some(Wide::Tf32))
}

/// A dimension as kernels take it.
fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a dimension of a layer")
}

/// A map of a matrix of so many rows and columns, in boxes.
fn map(gpu: &Gpu, dtype: DType, of: Matrix, size_of: [usize; 2], tile: [usize; 2], swizzle: Swizzle) -> [u64; 16] {
    let [rows, columns] = size_of;
    let desc = TensorMapDesc {
        dtype,
        base: of.at,
        dims: vec![columns as u64, rows as u64],
        strides: vec![dtype.bytes(of.ld as usize) as u64],
        tile: vec![size(tile[1]), size(tile[0])],
        steps: vec![1, 1],
        swizzle,
    };
    match gpu.tensor_map(&desc) {
        Arg::Map(map) => map.0,
        _ => unreachable!("a tensor map is one"),
    }
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

/// Products in one type with their low-rank additions, as they are gathered.
struct Batch {
    packer: Packer,
    tf32: bool,
    lows: Vec<Job>,
    extras: Vec<Extra>,
    mains: Vec<Job>,
    /// What a library multiplies before that.
    products: Vec<Product>,
    /// What the additions go through, for as long as it is needed.
    low: Vec<Tensor>,
}

impl Batch {
    fn new(gpu: &Arc<Gpu>, (dtype, tf32): (DType, bool)) -> Self {
        let packer = Packer::new(gpu, dtype);
        let (lows, extras, mains, products, low) = Default::default();
        Self { packer, tf32, lows, extras, mains, products, low }
    }

    /// One for every type.
    fn of_each_type(gpu: &Arc<Gpu>) -> [Self; TYPES.len()] {
        TYPES.map(|of| Self::new(gpu, of))
    }

    /// `scale·x·down` or `scale·x·downᵀ`, as weights of the launch lie, of some rows, with its rank filled up.
    fn low(&mut self, x: Left, rows: &Range<usize>, down: Matrix, rank: usize, scale: f32) -> Tensor {
        let (packer, width) = (&self.packer, rank.next_multiple_of(RANK));
        let low = Tensor::scratch_of(&Device::Gpu(packer.gpu.clone()), packer.dtype, &[rows.len(), width]);
        let problem = x.rows(rows, packer.dtype).times(down, low.address(), width, scale);
        self.lows.push(Job { problem, then: Finish::plain(packer.dtype), norm: None });
        low
    }

    /// Adds `low·up` for some rows to the product that is given next.
    fn add(&mut self, low: &Tensor, rows: &Range<usize>, up: Matrix) {
        self.extras.push(Extra {
            a: low.address(),
            b: up.at,
            lda: size(low.width()),
            ldb: up.ld,
            first: size(rows.start),
            end: size(rows.end),
            depth: size(low.width()),
            pad: 0,
        });
    }

    /// A product with the additions since the last one.
    fn push(&mut self, problem: Problem, then: Finish, norm: Option<Norm>) {
        let first = self.mains.last().map_or(0, |j| j.problem.first_extra + j.problem.extras);
        let problem = Problem { first_extra: first, extras: size(self.extras.len()) - first, ..problem };
        self.mains.push(Job { problem, then, norm });
    }

    /// Launches everything there is: products do not wait for one another.
    fn run(&mut self, weight: Weight) {
        self.packer.run();
        let Packer { gpu, dtype, .. } = &self.packer;
        let of = |jobs: &mut Vec<Job>, extras: &[Extra]| {
            let (on_hopper, others) = hopper::split(gpu, *dtype, weight, std::mem::take(jobs), extras);
            hopper::launch(gpu, *dtype, &on_hopper);
            portable::products(gpu, (*dtype, self.tf32), weight, others, extras);
        };
        of(&mut self.lows, &[]);
        self.products.drain(..).for_each(|product| gpu.multiply(product));
        of(&mut self.mains, &std::mem::take(&mut self.extras));
    }

    /// Whether the product into `y` goes to a library.
    fn leaves(&self, y: &Tensor) -> bool {
        let place = Place { at: y.address(), width: y.width(), dtype: y.dtype() };
        library::takes(&self.packer.gpu, self.packer.dtype, place)
    }

    /// A product of [`forward`], of rows that go through the same factors or none at a time.
    fn call(&mut self, call: &Call, y: &mut Tensor, mut then: Finish, norm: Option<Norm>) {
        let Call { x, layer, .. } = call;
        let left = Left { matrix: self.packer.matrix(x), m: x.rows(), k: x.width() };
        let w = self.packer.weight(layer.layer.weight);
        let bias = layer.layer.bias.map_or(0, Tensor::address);
        let mut all = Problem { bias, ..left.times(w, y.address_mut(), layer.layer.weight.dim(0), 1.0) };
        let is_the_library_s = self.leaves(y);
        if is_the_library_s {
            self.products.push(library::product(&all, Weight::Along, self.packer.dtype, y.dtype(), false));
            (all, then) = library::rest(all, y.dtype());
        }
        let per_sample = x.rows() / x.dim(0).max(1);
        for samples in runs(layer.lora, x.dim(0)) {
            let rows = samples.start * per_sample..samples.end * per_sample;
            let lora = layer.lora.iter().find(|l| l.samples == samples);
            if is_the_library_s && bias == 0 && lora.is_none() {
                continue;
            }
            if let Some(l) = lora {
                let (down, up) = (self.packer.down(&l.a), self.packer.up(&l.b));
                let low = self.low(left, &rows, down, l.a.dim(0), l.scale);
                self.add(&low, &rows, up);
                self.low.push(low);
            }
            self.push(Problem { begin: size(rows.start), m: size(rows.end), ..all }, then, norm);
        }
    }

    /// What a branch adds to the gradient to the input, `dx = dy·W + u·A`, and `u = s·dy·B`.
    fn branch(&mut self, branch: &Branch, dx: Option<(Place, Finish)>) -> Option<Tensor> {
        let Branch { dy, weight, lora, .. } = branch;
        let rows = 0..dy.rows();
        let left = Left { matrix: self.packer.matrix(dy), m: dy.rows(), k: dy.width() };
        let u = lora.map(|l| {
            let (down, up) = (self.packer.down(&l.a), self.packer.up(&l.b));
            let u = self.low(left, &rows, up, l.a.dim(0), l.scale);
            if dx.is_some() {
                self.add(&u, &rows, down);
            }
            u
        });
        if let Some((dx, then)) = dx {
            let w = self.packer.weight(weight);
            let problem = left.times(w, dx.at, dx.width, 1.0);
            if !library::takes(&self.packer.gpu, self.packer.dtype, dx) {
                self.push(problem, then, None);
                return u;
            }
            let adds = then.kind == Kind::Add as u32;
            self.products.push(library::product(&problem, Weight::Across, self.packer.dtype, dx.dtype, adds));
            if u.is_some() {
                let (rest, then) = library::rest(problem, dx.dtype);
                self.push(rest, then, None);
            }
        }
        u
    }

    /// What the gradients of a branch's factors are made of, `t = s·x·Aᵀ` with what runs next.
    fn factors(&mut self, branch: Branch, x: &Tensor, u: Tensor) -> Option<Factors> {
        let (l, at) = branch.lora.zip(branch.grad)?;
        let (m, k, rank) = (x.rows(), x.width(), l.a.dim(0));
        let (dy, down) = (self.packer.matrix(branch.dy), self.packer.down(&l.a));
        let x = Left { matrix: self.packer.matrix(x), m, k };
        let t = self.low(x, &(0..m), down, rank, l.scale);
        Some(Factors { dy, x: x.matrix, low: [t, u], size: [m, k, branch.dy.width(), rank], at })
    }
}

/// Low-rank factors are rounded as the weights are.
pub(super) fn forward(outputs: &mut [Output], _: &mut [Vec<Tensor>], calls: &[Call]) {
    let mut batches = Batch::of_each_type(&calls[0].x.gpu());
    // Norms that come after the products.
    let mut norms = Vec::new();
    // What follows products of a library.
    let mut followed = Vec::new();
    for (i, (call, Output { y, hidden, inverse_rms })) in calls.iter().zip(&mut *outputs).enumerate() {
        let (dtype, tf32) = arithmetic(call.layer.layer.weight, call.x.dtype(), false);
        let batch = batches.iter_mut().find(|b| (b.packer.dtype, b.tf32) == (dtype, tf32)).expect("one of each type");
        let (mut then, mut norm) = (Finish::new(call.then, y), None);
        let mut y = y;
        if let Then::Normalise { weight, eps } = call.then {
            let inverse = inverse_rms.as_mut().expect("room beside a norm").address_mut();
            let fused = Norm { weight: weight.address(), width: weight.len(), eps, inverse };
            if !batch.leaves(y) && hopper::normalises(&batch.packer.gpu, dtype, y, &fused) {
                norm = Some(fused);
            } else {
                norms.push(i);
            }
        }
        if norm.is_none() && matches!(call.then, Then::Normalise { .. }) {
            // The norm reads what is kept of all rows.
            if hidden.shape() == y.shape() {
                y = hidden;
            }
        } else if !hidden.is_empty() {
            (then.kept, then.hidden) = (size(hidden.rows()), hidden.address_mut());
        }
        if batch.leaves(y) {
            followed.push(i);
        }
        batch.call(call, y, then, norm);
    }
    batches.iter_mut().for_each(|b| b.run(Weight::Along));
    for i in followed {
        library::follow(&calls[i], &mut outputs[i]);
    }
    for i in norms {
        normalise(&calls[i], &mut outputs[i]);
    }
}

/// A norm of what the product has left in `hidden`, if all samples are kept, or in `y`.
fn normalise(call: &Call, Output { y, hidden, inverse_rms }: &mut Output) {
    let (Then::Normalise { weight, eps }, Some(inverse)) = (call.then, inverse_rms) else { return };
    if hidden.shape() == y.shape() {
        rms_norm::forward_into(y, hidden, weight, eps, inverse);
        return;
    }
    if !hidden.is_empty() {
        copy::rows_into(hidden, 0, &y.slice(0..hidden.dim(0)));
    }
    rms_norm::forward_in_place(y, weight, eps, Some(inverse));
}

/// The samples in runs that go through the same factors or none.
fn runs(lora: &[Lora], samples: usize) -> impl Iterator<Item = Range<usize>> {
    let mut edges: Vec<usize> = lora.iter().flat_map(|l| [l.samples.start, l.samples.end]).collect();
    edges.extend([0, samples]);
    edges.sort_unstable();
    edges.dedup();
    (1..edges.len()).map(move |i| edges[i - 1]..edges[i])
}

/// Branches of one input are added up one after another: the first of every input, then the second.
pub(super) fn backward(calls: &mut [Backward], _: &mut [Vec<Lows>], flat: Option<&mut Tensor>) {
    let Some(first) = calls.iter().find_map(|c| c.branches.first()) else { return };
    let gpu = first.dy.gpu();
    let mut batches = Batch::of_each_type(&gpu);
    let mut trained = [const { Vec::new() }; TYPES.len()];
    let mut through_gelu = Vec::new();
    let stages = calls.iter().map(|c| c.branches.len()).max().unwrap_or(0);
    for stage in 0..stages {
        for (at, call) in calls.iter_mut().enumerate() {
            let Some(&branch) = call.branches.get(stage).filter(|b| !b.dy.is_empty()) else { continue };
            let dx = to_input(&mut call.dx, stage);
            if dx.is_none() && branch.grad.is_none() {
                continue;
            }
            let of = arithmetic(branch.weight, branch.dy.dtype(), true);
            let i = TYPES.iter().position(|t| *t == of).expect("one that is computed in");
            let is_the_library_s = dx.is_some_and(|(dx, _)| library::takes(&gpu, of.0, dx));
            if is_the_library_s && matches!(call.dx, InputGrad::ThroughGelu { .. }) {
                through_gelu.push(at);
            }
            let u = batches[i].branch(&branch, dx);
            trained[i].extend(call.x.zip(u).map(|(x, u)| (branch, x, u)));
        }
        batches.iter_mut().for_each(|b| b.run(Weight::Across));
    }
    for at in through_gelu {
        if let InputGrad::ThroughGelu { dx, hidden } = &mut calls[at].dx {
            activation::gelu_tanh_backward(dx, hidden);
        }
    }
    let Some(flat) = flat else { return };
    for (batch, trained) in batches.iter_mut().zip(trained) {
        let factors = trained.into_iter().filter_map(|(branch, x, u)| batch.factors(branch, x, u)).collect::<Vec<_>>();
        batch.run(Weight::Along);
        gradients::add(&gpu, batch.packer.dtype, &factors, flat);
    }
}

/// Where the branch of a stage puts its part of the gradient to the input, and what is done to it.
fn to_input(dx: &mut InputGrad, stage: usize) -> Option<(Place, Finish)> {
    let place = |dx: &mut Tensor| Place { at: dx.address_mut(), width: dx.width(), dtype: dx.dtype() };
    let (dx, kind, read) = match dx {
        InputGrad::Skip => return None,
        InputGrad::Overwrite(dx) if stage == 0 => return Some((place(dx), Finish::plain(dx.dtype()))),
        InputGrad::Overwrite(dx) | InputGrad::Add(dx) => (place(dx), Kind::Add, &**dx),
        InputGrad::ThroughGelu { dx, hidden } => (place(dx), Kind::ThroughGelu, *hidden),
    };
    Some((dx, Finish { kind: kind as u32, residual: read.address(), ..Finish::plain(read.dtype()) }))
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
