//! Operands in the type that is computed in, where rows begin at multiples of 16 bytes.

use std::sync::Arc;

use bytemuck::NoUninit;

use super::size;
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, suffix, type_code};
use crate::device::{DType, Tensor};

/// Ranks are filled up with zeros to multiples of what a stage of the kernels holds, so that the numbers of an addition
/// meet in the same instructions whatever was added before.
pub(super) const RANK: usize = 32;

/// As in kernels/linear.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct Packing {
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

/// Matrices on their way to the type that is computed in.
pub(super) struct Packer {
    pub gpu: Arc<Gpu>,
    pub dtype: DType,
    jobs: Vec<Packing>,
    /// What was packed, for as long as it is needed.
    packed: Vec<Tensor>,
    /// What lies somewhere else than it did, by where it was, and its rows and columns there and here.
    moved: Vec<(DevicePtr, [usize; 4], Matrix)>,
}

impl Packer {
    pub(super) fn new(gpu: &Arc<Gpu>, dtype: DType) -> Self {
        Self { gpu: gpu.clone(), dtype, jobs: Vec::new(), packed: Vec::new(), moved: Vec::new() }
    }

    /// Elements of 16 bytes.
    fn step(&self) -> usize {
        16 / self.dtype.bytes(1)
    }

    /// `t` with all axes but the last folded: where it lies, if kernels can take it from there.
    pub(super) fn matrix(&mut self, t: &Tensor) -> Matrix {
        let step = self.step();
        if t.dtype() == self.dtype && t.width().is_multiple_of(step) && t.address().is_multiple_of(16) {
            return Matrix { at: t.address(), ld: size(t.width()) };
        }
        self.filled(t, t.rows(), t.width().next_multiple_of(step))
    }

    /// A weight `[out, ..]`, its other axes folded.
    pub(super) fn weight(&mut self, w: &Tensor) -> Matrix {
        self.matrix(&w.view(0, &[w.dim(0), w.len() / w.dim(0).max(1)]))
    }

    /// `t` with zeros up to so many rows and columns.
    fn filled(&mut self, t: &Tensor, rows: usize, columns: usize) -> Matrix {
        let (from, sizes) = (t.address(), [t.rows(), t.width(), rows, columns]);
        if let Some((.., there)) = self.moved.iter().find(|(f, s, _)| (*f, *s) == (from, sizes)) {
            return *there;
        }
        let to = Tensor::scratch_of(&t.device(), self.dtype, &[rows, columns]);
        let job = packing(t, &to, [t.rows(), t.width()], [rows, columns]);
        self.jobs.push(job);
        let matrix = Matrix { at: to.address(), ld: size(columns) };
        self.packed.push(to);
        self.moved.push((from, sizes, matrix));
        matrix
    }

    /// `A` `[rank, in]`, the rank filled up.
    pub(super) fn down(&mut self, a: &Tensor) -> Matrix {
        self.filled(a, a.rows().next_multiple_of(RANK), a.width().next_multiple_of(self.step()))
    }

    /// `B` `[out, rank]`, the rank filled up.
    pub(super) fn up(&mut self, b: &Tensor) -> Matrix {
        self.filled(b, b.rows(), b.width().next_multiple_of(RANK))
    }

    pub(super) fn run(&mut self) {
        pack(&self.gpu, self.dtype, &std::mem::take(&mut self.jobs));
    }
}

pub(super) fn packing(
    from: &Tensor,
    to: &Tensor,
    [rows, columns]: [usize; 2],
    [to_rows, to_columns]: [usize; 2],
) -> Packing {
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

pub(super) fn pack(gpu: &Arc<Gpu>, dtype: DType, jobs: &[Packing]) {
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
