use super::Axis;
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid};

/// As in kernels/resample.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Normal {
    mean: [f32; 3],
    std: [f32; 3],
}

pub(super) fn forward(out: &mut Tensor, planes: &Tensor, rows: &Axis, columns: &Axis, mean: [f64; 3], std: [f64; 3]) {
    let (b, h) = (planes.dim(0), planes.dim(2));
    let mut middle = Tensor::scratch(&planes.device(), &[b, 3, h, columns.to()]);
    let none = Normal { mean: [0.0; 3], std: [1.0; 3] };
    pass(&mut middle, planes, columns, [b * 3 * h, 1], none);
    let normal = Normal { mean: mean.map(|m| m as f32), std: std.map(|s| s as f32) };
    pass(out, &middle, rows, [b * 3, columns.to()], normal);
}

/// Along an axis that is `outer` times there, whose entries are `inner` numbers each.
fn pass(out: &mut Tensor, x: &Tensor, axis: &Axis, [outer, inner]: [usize; 2], normal: Normal) {
    let (gpu, from, to) = (x.gpu(), axis.from(), axis.to());
    let most = axis.taps.iter().map(|t| t.weights.len()).max().unwrap_or(0);
    let mut table = vec![0i32; to * (2 + most)];
    for (row, t) in table.chunks_exact_mut(2 + most).zip(&axis.taps) {
        [row[0], row[1]] = [t.first, t.weights.len()].map(|n| n as i32);
        row[2..].iter_mut().zip(&t.weights).for_each(|(to, w)| *to = w.to_bits() as i32);
    }
    let table = gpu.table(&table);
    // The second axis of a grid ends at 65535; its blocks go on where the last has stopped.
    let grid = Grid::of([(to * inner).div_ceil(256), outer.min(1024), 1], 256);
    let sizes = [2 + most, outer, from, to, inner].map(|n| (n as u32).into());
    let args = [out.arg_mut(), x.arg(), (&table).into()].into_iter().chain(sizes).chain([Arg::of(&normal)]);
    gpu.launch("resample", "resample_pass", grid, args);
}
