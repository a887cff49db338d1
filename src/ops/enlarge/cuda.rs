use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, small, vectors};

pub(super) fn add(y: &mut Tensor, x: &Tensor, factor: usize) {
    enlarge("add", y, 0, x, factor);
}

pub(super) fn place(y: &mut Tensor, channel: usize, x: &Tensor, factor: usize) {
    enlarge("place", y, channel, x, factor);
}

/// To the channels of `y` from `first` on.
fn enlarge(how: &str, y: &mut Tensor, first: usize, x: &Tensor, factor: usize) {
    let (channels, all) = (x.dim(3), y.dim(3));
    if x.is_empty() {
        return;
    }
    // A multiple of 4 if all three are.
    let width = [channels, all, first].into_iter().fold(0, |bits, n| bits | n);
    let (pack, form) = vectors(width, [y.address(), x.address()]);
    let threads = x.len() * factor * factor / pack;
    let size = [x.dim(1), x.dim(2), channels, factor, all, first].map(small);
    let args = [y.arg_mut(), x.arg(), Arg::of(&size), small(threads).into()];
    x.gpu().launch("enlarge", &format!("enlarge_{how}_{form}"), Grid::flat(threads), args);
}

pub(super) fn unfold(y: &mut Tensor, x: &Tensor) {
    if y.is_empty() {
        return;
    }
    let channels = y.dim(3);
    let (pack, form) = vectors(channels, [y.address(), x.address()]);
    let threads = y.len() / pack;
    let sizes = [channels, x.dim(2), threads].map(|n| small(n).into());
    let entry = format!("enlarge_unfold_{form}");
    x.gpu().launch("enlarge", &entry, Grid::flat(threads), [y.arg_mut(), x.arg()].into_iter().chain(sizes));
}
