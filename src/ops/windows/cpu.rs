use rayon::prelude::*;

use super::{KINDS, Windows};
use crate::device::Tensor;
use crate::ops::cpu::at_least;

pub(super) fn partition(out: &mut Tensor, x: &Tensor, windows: &Windows) {
    let ([height, width], c, size) = (windows.image, x.dim(3), windows.size);
    let order = placed(windows, x.dim(0));
    let (x, padded) = (x.host(), windows.grid().map(|n| n * size));
    let parts = out.host_mut().par_chunks_exact_mut(size * size * c).zip(&order);
    parts.with_min_len(at_least(1)).for_each(|(part, (image, [row, column]))| {
        for (pixel, out) in part.chunks_exact_mut(c).enumerate() {
            let y = (row * size + pixel / size + windows.shift) % padded[0];
            let x_at = (column * size + pixel % size + windows.shift) % padded[1];
            if y < height && x_at < width {
                out.copy_from_slice(&x[((image * height + y) * width + x_at) * c..][..c]);
            } else {
                out.fill(0.0);
            }
        }
    });
}

pub(super) fn add(x: &mut Tensor, parts: &Tensor, windows: &Windows) {
    let ([height, width], c, size) = (windows.image, x.dim(3), windows.size);
    let ([rows, columns], padded) = (windows.grid(), windows.grid().map(|n| n * size));
    let mut place = vec![0; x.dim(0) * rows * columns];
    for (i, (image, [row, column])) in placed(windows, x.dim(0)).into_iter().enumerate() {
        place[(image * rows + row) * columns + column] = i;
    }
    let parts = parts.host();
    let lines = x.host_mut().par_chunks_exact_mut(width * c).enumerate();
    lines.with_min_len(at_least(1)).for_each(|(line, pixels)| {
        let (image, y) = (line / height, line % height);
        let turned = (y + padded[0] - windows.shift) % padded[0];
        for (at, pixel) in pixels.chunks_exact_mut(c).enumerate() {
            let across = (at + padded[1] - windows.shift) % padded[1];
            let window = place[(image * rows + turned / size) * columns + across / size];
            let within = turned % size * size + across % size;
            let part = &parts[(window * size * size + within) * c..][..c];
            pixel.iter_mut().zip(part).for_each(|(x, p)| *x += p);
        }
    });
}

/// The windows of all images in their order: the image, row and column.
fn placed(windows: &Windows, images: usize) -> Vec<(usize, [usize; 2])> {
    let order = windows.order();
    let of_kind = |kind| {
        let order = order.iter().filter(move |w| windows.kind(**w) == kind).collect::<Vec<_>>();
        (0..images).flat_map(move |image| order.clone().into_iter().map(move |w| (image, *w)))
    };
    KINDS.into_iter().flat_map(of_kind).collect()
}

pub(super) fn neighbours(out: &mut Tensor, x: &Tensor) {
    let &[_, h, w, c] = x.shape() else { unreachable!("checked") };
    let (rows, columns) = (out.dim(1), out.dim(2));
    let x = x.host();
    let lines = out.host_mut().par_chunks_exact_mut(columns * 4 * c).enumerate();
    lines.with_min_len(at_least(4)).for_each(|(line, out)| {
        let (image, row) = (line / rows, line % rows);
        for (i, part) in out.chunks_exact_mut(c).enumerate() {
            let (y, x_at) = (2 * row + i % 2, i / 4 * 2 + i % 4 / 2);
            if y < h && x_at < w {
                part.copy_from_slice(&x[((image * h + y) * w + x_at) * c..][..c]);
            } else {
                part.fill(0.0);
            }
        }
    });
}
