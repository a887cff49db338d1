//! Enlargement of NCHW images.

use rayon::prelude::*;

use crate::device::Tensor;

/// Every pixel twice in both directions (nearest neighbour). `x` `[b, c, h, w]`; returns `[b, c, 2h, 2w]`.
///
/// Before a convolution, [`super::conv2d::Doubling`] does this without the enlarged image.
pub fn double(x: &Tensor) -> Tensor {
    let (h, w) = (x.dim(2), x.dim(3));
    let mut y = Tensor::scratch(&[x.dim(0), x.dim(1), 2 * h, 2 * w]);
    y.data_mut().par_chunks_exact_mut((4 * h * w).max(1)).enumerate().for_each(|(plane, y)| {
        for (i, rows) in y.chunks_exact_mut(4 * w).enumerate() {
            let (first, second) = rows.split_at_mut(2 * w);
            let line = &x.data()[(plane * h + i) * w..][..w];
            first.as_chunks_mut::<2>().0.iter_mut().zip(line).for_each(|(two, v)| *two = [*v; 2]);
            second.copy_from_slice(first);
        }
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_appears_twice_in_both_directions() {
        let x = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1, 2, 1, 3]);
        let y = double(&x);
        assert_eq!(y.shape(), [1, 2, 2, 6]);
        let (a, b) = ([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 5.0, 6.0, 6.0]);
        assert_eq!(y.data(), [a, a, b, b].concat());
    }
}
