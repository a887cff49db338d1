use super::table;
use crate::device::Tensor;
use crate::device::gpu::Grid;

pub(super) fn forward(out: &mut Tensor, images: &Tensor, corner: [usize; 2], mean: [f64; 3], std: [f64; 3]) {
    let (gpu, b, h, w) = (images.gpu(), images.dim(0), images.dim(1), images.dim(2));
    let (height, width) = (out.dim(2), out.dim(3));
    let table = gpu.table(table(mean, std).as_flattened());
    let first = (corner[0] * w + corner[1]) as u64;
    let sizes = [h, w, width].map(|n| (n as u32).into());
    let args = [out.arg_mut(), images.arg(), (&table).into(), first.into()].into_iter().chain(sizes);
    gpu.launch("normalise", "normalise_forward", Grid::of([width.div_ceil(256), height, b], 256), args);
}
