//! How a shifted-window transformer (Liu et al. 2021, Swin) cuts images `[b, h, w, c]` into windows that attend within
//! themselves, puts them together again, and takes neighbours together; in single precision.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::dispatch;
use crate::device::{DType, Tensor};

/// Windows of `size x size` pixels over images of `image` (height, width), padded with zeros below and at the right, that are
/// first turned by `shift` pixels up and to the left.
#[derive(Clone, Copy)]
pub struct Windows {
    /// Height and width of an image.
    pub image: [usize; 2],
    /// Height and width of a window.
    pub size: usize,
    /// Less than `size`.
    pub shift: usize,
}

/// Which borders the turned image has inside a window: what lies beyond one came from the other side and is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// A horizontal one.
    pub bottom: bool,
    /// A vertical one.
    pub right: bool,
}

/// The order in which windows are: those without a border first.
pub const KINDS: [Kind; 4] = [
    Kind { bottom: false, right: false },
    Kind { bottom: false, right: true },
    Kind { bottom: true, right: false },
    Kind { bottom: true, right: true },
];

impl Windows {
    /// Rows and columns of windows.
    pub fn grid(&self) -> [usize; 2] {
        self.image.map(|n| n.div_ceil(self.size))
    }

    fn kind(&self, [row, column]: [usize; 2]) -> Kind {
        let [rows, columns] = self.grid();
        Kind { bottom: self.shift > 0 && row + 1 == rows, right: self.shift > 0 && column + 1 == columns }
    }

    /// The windows of one image, `[row, column]`, in their order.
    fn order(&self) -> Vec<[usize; 2]> {
        let [rows, columns] = self.grid();
        let all = || (0..rows).flat_map(|row| (0..columns).map(move |column| [row, column]));
        KINDS.iter().flat_map(|kind| all().filter(|w| self.kind(*w) == *kind).collect::<Vec<_>>()).collect()
    }

    /// Which of the windows of `images` images are of each of [`KINDS`].
    pub fn of_kinds(&self, images: usize) -> [Range<usize>; 4] {
        let order = self.order();
        let mut first = 0;
        KINDS.map(|kind| {
            let count = images * order.iter().filter(|w| self.kind(**w) == kind).count();
            first += count;
            first - count..first
        })
    }

    /// Whether one pixel of a window of this kind sees another; both are counted row by row.
    pub fn sees(&self, kind: Kind, one: usize, other: usize) -> bool {
        let beyond = |at: usize, border: bool| border && at >= self.size - self.shift;
        let side = |pixel: usize| (beyond(pixel / self.size, kind.bottom), beyond(pixel % self.size, kind.right));
        side(one) == side(other)
    }

    fn check(&self, images: &Tensor) {
        let fits = images.shape().len() == 4 && images.shape()[1..3] == self.image && self.shift < self.size;
        assert!(
            fits && images.dtype() == DType::F32,
            "windows: {images:?} for {:?} by {} shifted {}",
            self.image,
            self.size,
            self.shift
        );
    }
}

/// The windows of all images `[b, h, w, c]`, `[b·windows, size², c]`: of each of [`KINDS`] those of the first image, of the
/// second, and so on.
pub fn partition(x: &Tensor, windows: &Windows) -> Tensor {
    windows.check(x);
    let [rows, columns] = windows.grid();
    let mut out = x.scratch_like(&[x.dim(0) * rows * columns, windows.size * windows.size, x.dim(3)]);
    dispatch!(x, partition(&mut out, x, windows));
    out
}

/// Adds `parts`, as [`partition`] has made them, to the images `x` they were cut from.
pub fn add(x: &mut Tensor, parts: &Tensor, windows: &Windows) {
    windows.check(x);
    let ([rows, columns], pixels) = (windows.grid(), windows.size * windows.size);
    let fits = parts.shape() == [x.dim(0) * rows * columns, pixels, x.dim(3)] && parts.dtype() == DType::F32;
    assert!(fits, "windows: {parts:?} to {x:?}");
    dispatch!(x, add(x, parts, windows));
}

/// Every two by two neighbours of images `[b, h, w, c]` as one pixel, `[b, ⌈h/2⌉, ⌈w/2⌉, 4c]`: (0, 0), (1, 0), (0, 1), (1, 1)
/// by row and column. What is outside of the image is zero.
pub fn neighbours(x: &Tensor) -> Tensor {
    let &[b, h, w, c] = x.shape() else { panic!("neighbours: {x:?}") };
    assert_eq!(x.dtype(), DType::F32, "neighbours: {x:?}");
    let mut out = x.scratch_like(&[b, h.div_ceil(2), w.div_ceil(2), 4 * c]);
    dispatch!(x, neighbours(&mut out, x));
    out
}
