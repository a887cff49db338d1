use super::{Order, Patches};
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid};

pub(super) fn forward(out: &mut Tensor, latent: &Tensor, patches: &Patches, order: Order) {
    let (size, rows) = ([latent.dim(2), latent.dim(3)], patches.grid.0);
    launch("forward", out, latent, patches, size, order, [patches.channels * patches.size, rows]);
}

pub(super) fn inverse(out: &mut Tensor, tokens: &Tensor, patches: &Patches, order: Order) {
    let (size, rows) = ([out.dim(2), out.dim(3)], patches.grid.0 * patches.size);
    launch("inverse", out, tokens, patches, size, order, [patches.channels, rows]);
}

/// A kernel that has `work` = so many threads for every column of tokens, in so many rows, for every sample.
fn launch(
    name: &str,
    out: &mut Tensor,
    x: &Tensor,
    patches: &Patches,
    [height, width]: [usize; 2],
    order: Order,
    [threads, rows]: [usize; 2],
) {
    let &Patches { channels, size, grid: (_, columns) } = patches;
    let grid = Grid::of([(threads * columns).div_ceil(256), rows, x.dim(0)], 256);
    let sizes = [channels, size, columns, height, width].map(|n| n as u32);
    let last = u32::from(matches!(order, Order::ChannelLast));
    let args = [out.arg_mut(), x.arg(), Arg::of(&sizes), last.into()];
    x.gpu().launch("patchify", &format!("patchify_{name}_{}", x.dtype().bytes(1)), grid, args);
}
