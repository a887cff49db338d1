use super::Norm;
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, suffix};

/// As in kernels/group_norm.cu.
const THREADS: usize = 256;
const PIXELS: usize = 16;

/// How the kernels are laid over images.
struct Layout {
    pixels: usize,
    channels: usize,
    columns: usize,
    chunk: usize,
    chunks: usize,
    images: usize,
}

impl Layout {
    fn of(x: &Tensor) -> Self {
        let (images, channels) = (x.dim(0), x.width());
        let pixels = x.rows() / images;
        let columns = channels.div_ceil(16 / x.dtype().bytes(1)).next_power_of_two().min(32);
        let chunk = THREADS / columns * PIXELS;
        Self { pixels, channels, columns, chunk, chunks: pixels.div_ceil(chunk), images }
    }

    /// A block for every chunk of an image and as many channels as it takes.
    fn grid(&self, x: &Tensor) -> Grid {
        let packs = self.channels.div_ceil(16 / x.dtype().bytes(1));
        Grid::of([self.chunks, packs.div_ceil(self.columns), self.images], THREADS as u32)
    }

    /// A block for every group of an image.
    fn groups(&self, norm: Norm) -> Grid {
        Grid::of([norm.groups, self.images, 1], 512)
    }

    fn sizes(&self) -> [Arg; 3] {
        [self.pixels, self.channels, self.columns].map(|n| (n as u32).into())
    }

    /// Every channel's affine map; the groups' moments too, if they are wanted.
    fn maps(&self, x: &Tensor, norm: Norm, moments: Arg) -> Tensor {
        let (gpu, device) = (x.gpu(), x.device());
        let &Self { images, chunks, channels, pixels, chunk, .. } = self;
        let mut partial = Tensor::scratch(&device, &[images, chunks, 3, channels]);
        let of_chunks = [partial.arg_mut(), x.arg()].into_iter().chain(self.sizes());
        gpu.launch("group_norm", &format!("group_norm_partial_{}", suffix(x.dtype())), self.grid(x), of_chunks);

        let mut maps = Tensor::scratch(&device, &[images, 3, channels]);
        let of_groups = [maps.arg_mut(), partial.arg(), norm.weight.arg(), norm.bias.arg()].into_iter();
        let of_groups = of_groups.chain([pixels, chunks, chunk, channels].map(|n| (n as u32).into()));
        let of_groups = of_groups.chain([norm.eps.into(), moments]);
        gpu.launch("group_norm", "group_norm_maps", self.groups(norm), of_groups);
        maps
    }
}

pub(super) fn forward(y: &mut Tensor, x: &Tensor, norm: Norm, silu: bool) {
    if x.is_empty() {
        return;
    }
    let layout = Layout::of(x);
    let maps = layout.maps(x, norm, Arg::Ptr(0));
    let of_pixels = [y.arg_mut(), x.arg(), maps.arg()].into_iter().chain(layout.sizes());
    let entry = format!("group_norm_apply_{}", suffix(x.dtype()));
    x.gpu().launch("group_norm", &entry, layout.grid(x), of_pixels.chain([u32::from(silu).into()]));
}

pub(super) fn backward(dx: &mut Tensor, dy: &Tensor, x: &Tensor, norm: Norm, silu: bool) {
    if x.is_empty() {
        return;
    }
    let (gpu, device, dtype, layout) = (x.gpu(), x.device(), suffix(x.dtype()), Layout::of(x));
    let &Layout { images, chunks, channels, pixels, .. } = &layout;
    let silu = || u32::from(silu).into();
    let mut moments = Tensor::scratch(&device, &[images, norm.groups, 2]);
    let maps = layout.maps(x, norm, moments.arg_mut());

    let mut partial = Tensor::scratch(&device, &[images, chunks, 2, channels]);
    let of_chunks = [partial.arg_mut(), dy.arg(), x.arg(), maps.arg()].into_iter().chain(layout.sizes());
    let entry = format!("group_norm_gradient_partial_{dtype}");
    gpu.launch("group_norm", &entry, layout.grid(x), of_chunks.chain([silu()]));

    let mut corrections = Tensor::scratch(&device, &[images, 2, channels]);
    let of_groups = [corrections.arg_mut(), partial.arg(), norm.weight.arg(), moments.arg()].into_iter();
    let of_groups = of_groups.chain([pixels, chunks, channels].map(|n| (n as u32).into()));
    gpu.launch("group_norm", "group_norm_corrections", layout.groups(norm), of_groups);

    let of_pixels = [dx.arg_mut(), dy.arg(), x.arg(), maps.arg(), corrections.arg()].into_iter().chain(layout.sizes());
    let entry = format!("group_norm_add_gradient_{dtype}");
    gpu.launch("group_norm", &entry, layout.grid(x), of_pixels.chain([silu()]));
}
