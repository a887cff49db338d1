use super::Norm;
use crate::device::Tensor;
use crate::device::gpu::{Grid, suffix};

/// As in kernels/group_norm.cu.
const THREADS: usize = 256;
const PIXELS: usize = 16;

pub(super) fn forward(y: &mut Tensor, x: &Tensor, norm: Norm, silu: bool) {
    if x.is_empty() {
        return;
    }
    let (gpu, device, dtype) = (x.gpu(), x.device(), suffix(x.dtype()));
    let (images, channels) = (x.dim(0), x.width());
    let pixels = x.rows() / images;
    let packs = channels.div_ceil(16 / x.dtype().bytes(1));
    let columns = packs.next_power_of_two().min(32);
    let chunk = THREADS / columns * PIXELS;
    let chunks = pixels.div_ceil(chunk);
    let grid = Grid::of([chunks, packs.div_ceil(columns), images], THREADS as u32);
    let sizes = || [(pixels as u32).into(), (channels as u32).into(), (columns as u32).into()];

    let mut partial = Tensor::scratch(&device, &[images, chunks, 3, channels]);
    let of_chunks = [partial.arg_mut(), x.arg()].into_iter().chain(sizes());
    gpu.launch("group_norm", &format!("group_norm_partial_{dtype}"), grid, of_chunks);

    let mut maps = Tensor::scratch(&device, &[images, 3, channels]);
    let of_groups = [maps.arg_mut(), partial.arg(), norm.weight.arg(), norm.bias.arg()].into_iter();
    let of_groups = of_groups.chain([pixels, chunks, chunk, channels].map(|n| (n as u32).into()));
    let groups = Grid::of([norm.groups, images, 1], 512);
    gpu.launch("group_norm", "group_norm_maps", groups, of_groups.chain([norm.eps.into()]));

    let of_pixels = [y.arg_mut(), x.arg(), maps.arg()].into_iter().chain(sizes()).chain([u32::from(silu).into()]);
    gpu.launch("group_norm", &format!("group_norm_apply_{dtype}"), grid, of_pixels);
}
