use super::Windows;
use crate::device::Tensor;
use crate::device::gpu::{Arg, Grid, small, vectors};

/// `Size` of kernels/windows.cu.
fn size(images: &Tensor, windows: &Windows) -> Arg {
    let ([height, width], [rows, columns]) = (windows.image, windows.grid());
    let all = [images.dim(0), height, width, images.dim(3), windows.size, windows.shift, rows, columns];
    Arg::of(&all.map(small))
}

pub(super) fn partition(out: &mut Tensor, x: &Tensor, windows: &Windows) {
    if out.is_empty() {
        return;
    }
    let (pack, form) = vectors(x.dim(3), [out.address(), x.address()]);
    let threads = out.len() / pack;
    let args = [out.arg_mut(), x.arg(), size(x, windows), small(threads).into()];
    x.gpu().launch("windows", &format!("windows_partition_{form}"), Grid::flat(threads), args);
}

pub(super) fn add(x: &mut Tensor, parts: &Tensor, windows: &Windows) {
    if x.is_empty() {
        return;
    }
    let (pack, form) = vectors(x.dim(3), [x.address(), parts.address()]);
    let (threads, size) = (x.len() / pack, size(x, windows));
    let args = [x.arg_mut(), parts.arg(), size, small(threads).into()];
    parts.gpu().launch("windows", &format!("windows_add_{form}"), Grid::flat(threads), args);
}

pub(super) fn neighbours(out: &mut Tensor, x: &Tensor) {
    if out.is_empty() {
        return;
    }
    let (pack, form) = vectors(x.dim(3), [out.address(), x.address()]);
    let threads = out.len() / pack;
    let sizes = [x.dim(1), x.dim(2), x.dim(3), threads].map(|n| small(n).into());
    let args = [out.arg_mut(), x.arg()].into_iter().chain(sizes);
    x.gpu().launch("windows", &format!("windows_neighbours_{form}"), Grid::flat(threads), args);
}
