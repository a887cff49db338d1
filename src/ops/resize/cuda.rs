use super::cpu::taps;
use crate::device::Tensor;
use crate::device::gpu::{self, Arg, Grid, small, vectors};

pub(super) fn bicubic(out: &mut Tensor, middle: &mut Tensor, images: &Tensor, rows_first: bool) {
    if rows_first {
        pass(middle, images, 1);
        pass(out, middle, 2);
    } else {
        pass(middle, images, 2);
        pass(out, middle, 1);
    }
}

/// Resamples along an axis.
fn pass(out: &mut Tensor, x: &Tensor, axis: usize) {
    let (gpu, from, to) = (x.gpu(), x.dim(axis), out.dim(axis));
    let outer: usize = x.shape()[..axis].iter().product();
    let inner: usize = x.shape()[axis + 1..].iter().product();
    if from == to {
        out.arg_mut();
        return gpu::copy(&gpu, out.address(), x.address(), x.len());
    }
    let taps = taps(from, to);
    let most = taps.iter().map(|t| t.weights.len()).max().unwrap_or(0);
    let mut rows = vec![0i32; to * (2 + most)];
    for (row, t) in rows.chunks_exact_mut(2 + most).zip(&taps) {
        [row[0], row[1]] = [t.first, t.weights.len()].map(|n| n as i32);
        row[2..][..t.weights.len()].copy_from_slice(&t.weights);
    }
    let table = gpu.table(&rows);
    // The second axis of a grid ends at 65535; its blocks go on where the last has stopped.
    let grid = Grid::of([(to * inner).div_ceil(256), outer.min(1024), 1], 256);
    let sizes = [2 + most, outer, from, to, inner].map(|n| (n as u32).into());
    gpu.launch("resize", "resize_pass", grid, [out.arg_mut(), x.arg(), (&table).into()].into_iter().chain(sizes));
}

/// `Bilinear` of kernels/resize.cu.
#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Bilinear {
    from: [u32; 2],
    to: [u32; 2],
    channels: u32,
    scales: [f32; 2],
}

pub(super) fn bilinear(out: &mut Tensor, x: &Tensor) {
    if out.is_empty() {
        return;
    }
    let ([from, to], channels) = ([x, &*out].map(|t| [t.dim(1), t.dim(2)]), x.dim(3));
    let scales = [super::scale(from[0], to[0]), super::scale(from[1], to[1])];
    let sizes = Bilinear { from: from.map(small), to: to.map(small), channels: small(channels), scales };
    let (pack, form) = vectors(channels, [out.address(), x.address()]);
    let threads = out.len() / pack;
    let args = [out.arg_mut(), x.arg(), Arg::of(&sizes), small(threads).into()];
    x.gpu().launch("resize", &format!("resize_bilinear_{form}"), Grid::flat(threads), args);
}
