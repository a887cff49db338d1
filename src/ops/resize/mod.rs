//! Pictures in another size, as Pillow makes them.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::{DType, Tensor};

/// Pictures `[b, h, w, 3]` of bytes as `[b, height, width, 3]`, to the byte what Pillow's `resize((width, height), BICUBIC)`
/// gives: a = -0.5, the kernel widened when shrinking, fixed-point weights, and rounding to 8 bits after each of the two
/// passes (`libImaging/Resample.c`).
pub fn bicubic(images: &Tensor, height: usize, width: usize) -> Tensor {
    let &[b, h, w, 3] = images.shape() else { panic!("resize: {images:?}") };
    // Columns first where that saves work, as Pillow does from version 13 on. A square picture is the same in all.
    let (lost_rows, lost_columns) = (h as i64 - height as i64, w as i64 - width as i64);
    let columns_last = lost_rows > 0 && lost_rows > 2 * lost_columns;
    let between = if columns_last { [b, height, w, 3] } else { [b, h, width, 3] };
    let bytes = |shape: &[usize]| Tensor::scratch_of(&images.device(), DType::U8, shape);
    let (mut middle, mut out) = (bytes(&between), bytes(&[b, height, width, 3]));
    dispatch!(images, bicubic(&mut out, &mut middle, images, columns_last));
    out
}

/// Images `[b, h, w, c]` of numbers as `[b, height, width, c]`, each a bilinear mixture of four neighbours
/// (`interpolate(mode="bilinear", align_corners=False)` of torch, without antialiasing); in single precision.
pub fn bilinear(x: &Tensor, height: usize, width: usize) -> Tensor {
    let &[b, _, _, c] = x.shape() else { panic!("resize: {x:?}") };
    let mut out = x.scratch_like(&[b, height, width, c]);
    assert_eq!(x.dtype(), DType::F32, "bilinear: {x:?}");
    dispatch!(x, bilinear(&mut out, x));
    out
}

/// Pixels of `from` for one of `to`.
fn scale(from: usize, to: usize) -> f32 {
    from as f32 / to as f32
}

/// For each of `to` places along an axis of `from` pixels the two it lies between, and the share of the second
/// (`area_pixel_compute_source_index` of torch).
pub fn between(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = scale(from, to);
    let place = |i: usize| {
        let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (at as usize).min(from - 1);
        (first, (first + 1).min(from - 1), at - first as f32)
    };
    (0..to).map(place).collect()
}
