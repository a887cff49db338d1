//! Gradients of low-rank factors: sums over rows. Chunks of rows, whose length is a matter of their number alone, are summed
//! first, and then the chunks in their order: the same bits on every device.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::pack::{Matrix, RANK};
use super::{map, size};
use crate::device::gpu::{Arg, DevicePtr, Gpu, Grid, Swizzle, suffix};
use crate::device::{DType, Device, Tensor};

/// Partial sums: at most so many, of at least so many rows, and of a multiple of what a stage of the kernels holds.
const CHUNKS: usize = 16;
const CHUNK: usize = 512;
const STAGE: usize = 64;

/// `dB = dyᵀ·t` and `dA = uᵀ·x` of one layer.
pub(super) struct Factors {
    /// `[rows, out]`.
    pub dy: Matrix,
    /// `[rows, in]`.
    pub x: Matrix,
    /// `s·x·Aᵀ` and `s·dy·B`, `[rows, rank filled up]`.
    pub low: [Tensor; 2],
    /// Rows, inputs, outputs, rank.
    pub size: [usize; 4],
    /// Where in the flat buffer the gradients of `A` and of `B` begin.
    pub at: [usize; 2],
}

/// The sums of chunks of one layer, of `A` and of `B`, and where their sums are added.
struct Partial {
    sums: [Tensor; 2],
    at: [usize; 2],
}

/// Adds the gradients of all layers to what `flat` holds.
pub(super) fn add(gpu: &Arc<Gpu>, dtype: DType, layers: &[Factors], flat: &mut Tensor) {
    let room = |f: &Factors| {
        let [rows, inputs, outputs, rank] = f.size;
        let of = |n: usize| Tensor::scratch(&Device::Gpu(gpu.clone()), &[chunks(rows).1, n]);
        Partial { sums: [rank * inputs, outputs * rank].map(of), at: f.at }
    };
    let partial: Vec<Partial> = layers.iter().map(room).collect();
    let all: Vec<(&Factors, &Partial)> = layers.iter().zip(&partial).collect();
    if gpu.is_hopper() && dtype != DType::F32 {
        // Half the columns for what is common.
        let (narrow, broad): (Vec<_>, Vec<_>) = all.into_iter().partition(|(f, _)| f.size[3] <= RANK);
        hopper(gpu, dtype, RANK, &narrow);
        hopper(gpu, dtype, 2 * RANK, &broad);
    } else {
        all.into_iter().for_each(|(layer, partial)| portable(gpu, dtype, layer, partial));
    }
    sum(gpu, &partial, flat);
}

/// Rows of a chunk, and chunks.
fn chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(CHUNKS).next_multiple_of(STAGE).max(CHUNK);
    (chunk, rows.div_ceil(chunk))
}

/// Sums of one launch.
const SUMS: usize = 32;

/// As in kernels/linear.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Sum {
    to: DevicePtr,
    from: DevicePtr,
    n: u32,
    chunks: u32,
}

fn sum(gpu: &Arc<Gpu>, partial: &[Partial], flat: &mut Tensor) {
    let flat = flat.address_mut();
    let of = |p: &Partial| {
        std::array::from_fn::<Sum, 2, _>(|i| Sum {
            to: flat + DType::F32.bytes(p.at[i]) as u64,
            from: p.sums[i].address(),
            n: size(p.sums[i].width()),
            chunks: size(p.sums[i].dim(0)),
        })
    };
    let sums: Vec<Sum> = partial.iter().flat_map(of).collect();
    for sums in sums.chunks(SUMS) {
        let mut args = [Sum::zeroed(); SUMS];
        args[..sums.len()].copy_from_slice(sums);
        let longest = sums.iter().map(|s| s.n as usize).max().unwrap_or(0);
        let grid = Grid::of([longest.div_ceil(256), sums.len(), 1], 256);
        gpu.launch("linear", "linear_sum", grid, [Arg::of(&args)]);
    }
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

fn portable(gpu: &Arc<Gpu>, dtype: DType, layer: &Factors, partial: &Partial) {
    let Factors { dy, x, low: [t, u], size: [rows, inputs, outputs, rank], .. } = layer;
    let (chunk, chunks) = chunks(*rows);
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
    let [to_a, to_b] = &partial.sums;
    let of = [of(low(u), *x, to_a, *rank, *inputs), of(*dy, low(t), to_b, *outputs, *rank)];
    let [tiles_m, tiles_n] = [of.map(|g| g.m), of.map(|g| g.n)].map(|s| s[0].max(s[1]).div_ceil(64) as usize);
    let args = Gradients { of, rows: size(*rows), chunk: size(chunk), chunks: size(chunks), pad: 0 };
    let grid = Grid::of([tiles_n, tiles_m, 2 * chunks], 256);
    gpu.launch("linear", &format!("linear_tn_{}_64", suffix(dtype)), grid, [Arg::of(&args)]);
}

/// As in kernels/linear_gradients.sm_90a.cu.
const MOST: usize = 16;
const PANELS: usize = 3;
const COLUMNS: usize = 128;

/// As in kernels/linear_gradients.sm_90a.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Panel {
    map: [u64; 16],
    out: DevicePtr,
    first: u32,
    rank: u32,
    across: u32,
    along: u32,
    chunk_stride: u32,
    pad: [u32; 9],
}

/// As in kernels/linear_gradients.sm_90a.cu.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Problem {
    wide: [u64; 16],
    panels: [Panel; PANELS],
    end: u32,
    width: u32,
    rows: u32,
    chunk: u32,
    count: u32,
    pad: [u32; 11],
}

/// As in kernels/linear_gradients.sm_90a.cu.
#[derive(Clone, Copy, NoUninit)]
#[repr(C, align(64))]
struct Problems {
    problems: [Problem; MOST],
    count: u32,
    pad: [u32; 15],
}

/// A wide operand, and panels of the low ones that it is multiplied with.
struct Wide {
    of: Matrix,
    rows: usize,
    width: usize,
    panels: Vec<Panel>,
}

/// All layers together, in panels of so many columns. An input that several layers read is read once for all of them.
fn hopper(gpu: &Arc<Gpu>, dtype: DType, columns: usize, layers: &[(&Factors, &Partial)]) {
    let mut wides: Vec<Wide> = Vec::new();
    for (layer, partial) in layers {
        let &Factors { dy, x, low: [ref t, ref u], size: [rows, inputs, outputs, rank], .. } = *layer;
        let panels = |low: &Tensor, to: &Tensor, across: usize, along: usize| -> Vec<Panel> {
            let low = Matrix { at: low.address(), ld: size(low.width()) };
            let swizzle = if columns == RANK { Swizzle::B64 } else { Swizzle::B128 };
            let map = map(gpu, dtype, low, [rows, low.ld as usize], [STAGE, columns], swizzle);
            let panel = |first: usize| Panel {
                map,
                out: to.address() + DType::F32.bytes(first * along) as u64,
                first: size(first),
                rank: size((rank - first).min(columns)),
                across: size(across),
                along: size(along),
                chunk_stride: size(to.width()),
                pad: [0; 9],
            };
            (0..rank).step_by(columns).map(panel).collect()
        };
        let [to_a, to_b] = &partial.sums;
        let of_a = panels(u, to_a, 1, inputs);
        match wides.iter_mut().find(|w| (w.of.at, w.of.ld, w.rows, w.width) == (x.at, x.ld, rows, inputs)) {
            Some(wide) => wide.panels.extend(of_a),
            None => wides.push(Wide { of: x, rows, width: inputs, panels: of_a }),
        }
        wides.push(Wide { of: dy, rows, width: outputs, panels: panels(t, to_b, rank, 1) });
    }
    let problem = |wide: &Wide, panels: &[Panel]| {
        let mut p = Problem {
            wide: map(gpu, dtype, wide.of, [wide.rows, wide.width], [STAGE, STAGE], Swizzle::B128),
            end: size(wide.width.div_ceil(COLUMNS) * chunks(wide.rows).1),
            width: size(wide.width),
            rows: size(wide.rows),
            chunk: size(chunks(wide.rows).0),
            count: size(panels.len()),
            ..Problem::zeroed()
        };
        p.panels[..panels.len()].copy_from_slice(panels);
        p
    };
    let problems: Vec<Problem> =
        wides.iter().flat_map(|wide| wide.panels.chunks(PANELS).map(move |panels| problem(wide, panels))).collect();
    for problems in problems.chunks(MOST) {
        let mut args = Problems { problems: [Problem::zeroed(); MOST], count: size(problems.len()), pad: [0; 15] };
        let mut end = 0;
        for (to, p) in args.problems.iter_mut().zip(problems) {
            end += p.end;
            *to = Problem { end, ..*p };
        }
        let blocks = end.min(gpu.facts().processors);
        let entry = format!("linear_gradients_{}_{columns}", suffix(dtype));
        gpu.launch("linear_gradients", &entry, Grid::of([blocks as usize, 1, 1], 288), [Arg::of(&args)]);
    }
}
