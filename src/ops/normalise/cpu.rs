use rayon::prelude::*;

use super::table;
use crate::device::Tensor;

pub(super) fn forward(out: &mut Tensor, images: &Tensor, corner: [usize; 2], mean: [f64; 3], std: [f64; 3]) {
    let table = table(mean, std);
    let (h, w, height, width) = (images.dim(1), images.dim(2), out.dim(2), out.dim(3));
    let planes = out.host_mut().par_chunks_exact_mut(height * width).enumerate();
    planes.for_each(|(i, plane)| {
        let (image, c) = (&images.host_bytes()[i / 3 * h * w * 3..][..h * w * 3], i % 3);
        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
            let pixels = image[((corner[0] + y) * w + corner[1]) * 3..].as_chunks::<3>().0;
            row.iter_mut().zip(pixels).for_each(|(v, pixel)| *v = table[c][usize::from(pixel[c])]);
        }
    });
}
