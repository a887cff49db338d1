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
