//! The processor's matrix product, with a fixed order of accumulation.
//!
//! Every element of `C = A·B` is one chain of fused multiply-adds over `k = 0, 1, …`, cut into chunks of a fixed length.
//! The chain does not depend on how many rows or columns there are, on where in a tile the element falls, on the vectors
//! the processor has, or on the number of threads: a row alone and the same row in a batch of 9 give the same bits. That
//! is what makes rollout and training agree bit for bit (`batch invariance`).

mod detect;
mod driver;
mod pack;
mod packed;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use crate::device::{DType, Elems, Tensor};

pub(in crate::ops) use driver::{Finish, KC, Low, Product, products, tiles};
pub(in crate::ops) use pack::pack_f32;
pub(in crate::ops) use packed::{Lane, Packed};
pub(in crate::ops) use tile::{Left, NR, Panels};

/// A matrix operand: element (i, j) is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(in crate::ops) data: Elems<'a>,
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) cols: usize,
    pub(in crate::ops) row_stride: usize,
    pub(in crate::ops) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix over `data`, whose rows are `stride` elements apart.
    pub fn strided(data: Elems<'a>, rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(data.len() >= needed, "matrix {rows}x{cols} stride {stride} over {} elements", data.len());
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// A contiguous row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(Elems::F32(data), rows, cols, cols)
    }

    /// A tensor with all axes but the last folded into rows.
    pub(in crate::ops) fn of(t: &'a Tensor) -> Self {
        Self::new(t.host(), t.rows(), t.width())
    }

    /// A weight with all axes but the first folded into columns: `[out, in]`.
    pub(in crate::ops) fn weight(w: &'a Tensor) -> Self {
        let rows = w.dim(0);
        let cols = w.shape()[1..].iter().product();
        Self::strided(w.elems(), rows, cols, cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Some of the rows.
    pub(in crate::ops) fn rows_in(self, rows: Range<usize>) -> Self {
        let first = (rows.start * self.row_stride).min(self.data.len());
        Self { data: self.data.slice(first..self.data.len()), rows: rows.len(), ..self }
    }

    /// The transposed matrix; nothing moves.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What happens to the product before it is stored. The default overwrites `C` with `A·B`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Factor on the product.
    pub scale: f32,
    /// Add to what `C` holds instead of overwriting it.
    pub accumulate: bool,
    /// One value per column, added at the end.
    pub bias: Option<&'a [f32]>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: 1.0, accumulate: false, bias: None }
    }
}

/// `C = scale·A·B (+ C) (+ bias)`, `A` `[m, k]`, `B` `[k, n]`, `C` row-major `[m, n]` with rows `stride` apart.
/// bf16 operands `B` are multiplied in bf16 with f32 accumulation where the processor can (`A`, also a gradient, is then
/// rounded to bf16); everything else is f32 arithmetic.
pub fn matmul(c: &mut [f32], stride: usize, a: Mat, b: Mat, epilogue: Epilogue) {
    driver::one(c, stride, a, b, epilogue, true);
}

/// [`matmul`] on the calling thread only, for use inside a parallel loop; the same bits.
pub fn matmul_serial(c: &mut [f32], stride: usize, a: Mat, b: Mat, epilogue: Epilogue) {
    driver::one(c, stride, a, b, epilogue, false);
}

/// In words, how products with right operands of `dtype` are computed on this machine.
pub fn path(dtype: DType) -> &'static str {
    match (dtype, detect::has_avx512(), detect::has_avx2()) {
        (DType::Bf16, ..) if detect::has_bf16() => "AVX512-BF16 dot products, summed in f32",
        (DType::Bf16 | DType::F16, true, _) => "widened to f32, AVX-512",
        (DType::Bf16 | DType::F16, false, true) => "widened to f32, AVX2",
        (DType::Bf16 | DType::F16, false, false) => "widened to f32, the vectors the program was built for",
        (_, true, _) => "AVX-512",
        (_, false, true) => "AVX2",
        (_, false, false) => "the vectors the program was built for",
    }
}
