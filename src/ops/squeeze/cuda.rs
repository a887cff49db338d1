use crate::device::Tensor;
use crate::device::gpu::{Grid, small, vectors};

/// Pixels that are added up before their sum is added to the others': part of the definition of the result.
const CHUNK: usize = 512;
/// Channels of a block.
const COLUMNS: usize = 32;

pub(super) fn means(y: &mut Tensor, x: &Tensor) {
    let pixels = x.dim(1) * x.dim(2);
    if pixels <= CHUNK {
        return sums(y, x, pixels, pixels as f32);
    }
    let mut chunks = x.scratch_like(&[x.dim(0), pixels.div_ceil(CHUNK), 1, x.dim(3)]);
    sums(&mut chunks, x, CHUNK, 1.0);
    sums(y, &chunks, chunks.dim(1), pixels as f32);
}

/// Of every chunk of the pixels of each image, divided.
fn sums(y: &mut Tensor, x: &Tensor, chunk: usize, divisor: f32) {
    if y.is_empty() {
        return;
    }
    let (pixels, channels) = (x.dim(1) * x.dim(2), x.dim(3));
    let grid = Grid::of([channels.div_ceil(COLUMNS), pixels.div_ceil(chunk), x.dim(0)], 256);
    let sizes = [pixels, channels, chunk].map(|n| small(n).into());
    let args = [y.arg_mut(), x.arg()].into_iter().chain(sizes).chain([divisor.into()]);
    x.gpu().launch("squeeze", "squeeze_sums_f32", grid, args);
}

pub(super) fn excite(x: &mut Tensor, gates: &Tensor) {
    if x.is_empty() {
        return;
    }
    let (channels, n) = (gates.width(), x.len());
    let image = n / x.dim(0);
    let (pack, form) = vectors(channels, [x.address(), gates.address()]);
    let rest = [small(channels).into(), (image as u64).into(), (n as u64).into()];
    let args = [x.arg_mut(), gates.arg()].into_iter().chain(rest);
    gates.gpu().launch("squeeze", &format!("squeeze_excite_{form}"), Grid::flat(n / pack), args);
}
