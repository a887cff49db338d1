//! Bytes of pictures to the numbers a vision model was trained on.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// The crop of pictures `[b, h, w, 3]` of bytes that begins at row and column `corner` and has `size` of them, as
/// `(byte/255 − mean)/std` per channel: `[b, 3, height, width]`. Computed in f64 and rounded once.
pub fn forward(images: &Tensor, corner: [usize; 2], size: [usize; 2], mean: [f64; 3], std: [f64; 3]) -> Tensor {
    let &[b, h, w, 3] = images.shape() else { panic!("normalise: {images:?}") };
    assert!(corner[0] + size[0] <= h && corner[1] + size[1] <= w, "normalise: {size:?} at {corner:?} of {images:?}");
    let mut out = images.scratch_like(&[b, 3, size[0], size[1]]);
    dispatch!(images, forward(&mut out, images, corner, mean, std));
    out
}

/// The number for each byte of each channel.
fn table(mean: [f64; 3], std: [f64; 3]) -> [[f32; 256]; 3] {
    [0, 1, 2].map(|c| std::array::from_fn(|byte| ((byte as f64 / 255.0 - mean[c]) / std[c]) as f32))
}
