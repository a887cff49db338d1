//! Products by the kernels that every GPU has.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::size;
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, suffix, type_code};
use crate::device::{DType, Tensor};
use crate::ops::activation::Activation;
use crate::ops::adaln::Chunk;
use crate::ops::linear::Then;

/// Problems of one launch.
const PROBLEMS: usize = 16;

/// As in kernels/linear.cu: what is done to a result; 0 is nothing.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Kind {
    GeluTanh = 1,
    GeluErf,
    QuickGelu,
    Silu,
    Add,
    AddGated,
    ThroughGelu,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::GeluTanh, Self::GeluErf, Self::QuickGelu, Self::Silu, Self::Add, Self::AddGated, Self::ThroughGelu];

    /// What is done, if anything.
    pub(super) fn of(then: Finish) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == then.kind)
    }
}

/// As in kernels/linear.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Problem {
    pub x: DevicePtr,
    pub w: DevicePtr,
    pub bias: DevicePtr,
    pub y: DevicePtr,
    pub begin: u32,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub ldx: u32,
    pub ldw: u32,
    pub first_extra: u32,
    pub extras: u32,
    pub scale: f32,
    pub pad: u32,
}

/// As in kernels/linear.cu: `Then`.
#[derive(Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub(super) struct Finish {
    pub hidden: DevicePtr,
    pub residual: DevicePtr,
    pub gate: DevicePtr,
    pub kept: u32,
    pub per_sample: u32,
    pub gate_stride: u32,
    pub kind: u32,
    pub dtype: u32,
    pub tiles: u32,
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
pub(super) struct Extra {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub lda: u32,
    pub ldb: u32,
    pub first: u32,
    pub end: u32,
    pub depth: u32,
    pub pad: u32,
}

/// How the weight of a product lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops::linear) enum Weight {
    /// `[n, k]`.
    Along,
    /// `[k, n]`.
    Across,
}

/// A product, and what is done to it.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub problem: Problem,
    pub then: Finish,
    /// Not of these kernels.
    pub norm: Option<Norm>,
}

/// An RMS norm of heads.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    /// Of the columns of a head.
    pub weight: DevicePtr,
    pub width: usize,
    pub eps: f32,
    /// Where `1/rms` of the heads of the first rows goes.
    pub inverse: DevicePtr,
}

impl Job {
    /// Rows and columns of its tiles. Not by the number of rows: a row has the same bits in every batch.
    fn tile(&self, (dtype, tf32): (DType, bool)) -> usize {
        if (dtype != DType::F32 || tf32) && self.problem.n >= 256 { 128 } else { 64 }
    }
}

/// Launches products of a type, or in TF32, those that differ in nothing but their operands together.
pub(super) fn products(gpu: &Arc<Gpu>, of: (DType, bool), weight: Weight, jobs: Vec<Job>, extras: &[Extra]) {
    let mut left: Vec<Job> = jobs.into_iter().filter(|j| j.problem.n > 0 && j.problem.m > j.problem.begin).collect();
    let table = (!left.is_empty() && !extras.is_empty()).then(|| gpu.table(extras));
    let extra = table.as_ref().map_or(Arg::Ptr(0), Arg::from);
    while let Some(&first) = left.first() {
        let tile = first.tile(of);
        let is_alike = |j: &Job| j.tile(of) == tile && bytemuck::bytes_of(&j.then) == bytemuck::bytes_of(&first.then);
        let (alike, others): (Vec<Job>, Vec<Job>) = left.into_iter().partition(is_alike);
        for jobs in alike.chunks(PROBLEMS) {
            launch(gpu, of, weight, tile, jobs, extra.clone());
        }
        left = others;
    }
}

fn launch(gpu: &Arc<Gpu>, (dtype, tf32): (DType, bool), weight: Weight, tile: usize, jobs: &[Job], extra: Arg) {
    let most = |of: fn(&Problem) -> u32| jobs.iter().map(|j| of(&j.problem)).max().unwrap_or(0).div_ceil(tile as u32);
    let (tiles, rows) = (most(|p| p.n), most(|p| p.m - p.begin));
    let mut args = Products { problems: [Problem::zeroed(); PROBLEMS], then: Finish { tiles, ..jobs[0].then } };
    args.problems.iter_mut().zip(jobs).for_each(|(to, job)| *to = job.problem);
    let kind = match weight {
        Weight::Along => "nt",
        Weight::Across => "nn",
    };
    let grid = Grid::of([jobs.len() * tiles as usize, rows as usize, 1], 256);
    let of = if tf32 { "tf32" } else { suffix(dtype) };
    gpu.launch("linear", &format!("linear_{kind}_{of}_{tile}"), grid, [Arg::of(&args), extra]);
}

impl Finish {
    /// `then` for outputs `y`.
    pub(super) fn new(then: Then, y: &Tensor) -> Self {
        let dtype = y.dtype();
        let plain = Self::plain(dtype);
        match then {
            // Norms come after the products.
            Then::Nothing | Then::Normalise { .. } => plain,
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
    pub(super) fn plain(dtype: DType) -> Self {
        Self { dtype: type_code(dtype), per_sample: 1, ..Self::zeroed() }
    }
}
