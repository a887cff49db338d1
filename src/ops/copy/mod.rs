//! The only copies there are: rows put together in another order, and blocks put in their place. Rows keep the type they are
//! stored in, unless a cast is asked for.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::work::Work;
use crate::device::{DType, Tensor};

/// What copying `x` takes, whatever it is a part of.
fn moved(x: &Tensor) -> Work {
    Work::stream(x.bytes(), x.bytes())
}

/// The outermost entries `rows` of `x`, in that order.
pub fn gather(x: &Tensor, rows: &[usize]) -> Tensor {
    assert!(rows.iter().all(|r| *r < x.dim(0)), "gather: {rows:?} of {x:?}");
    let mut shape = x.shape().to_vec();
    shape[0] = rows.len();
    let mut out = Tensor::scratch_of(&x.device(), x.dtype(), &shape);
    dispatch!(x, gather(&mut out, x, rows), [moved(&out)]);
    out
}

/// The tensors one after another along the outermost axis; all other axes agree.
pub fn concat(parts: &[&Tensor]) -> Tensor {
    let mut shape = parts[0].shape().to_vec();
    assert!(parts.iter().all(|p| p.shape()[1..] == shape[1..]), "concat of unlike shapes: {parts:?}");
    shape[0] = parts.iter().map(|p| p.dim(0)).sum();
    let mut out = Tensor::scratch_of(&parts[0].device(), parts[0].dtype(), &shape);
    let mut first = 0;
    for part in parts {
        rows_into(&mut out, first, part);
        first += part.dim(0);
    }
    out
}

/// `x` on its own: a copy that shares nothing.
pub fn owned(x: &Tensor) -> Tensor {
    concat(&[x])
}

/// `x` as the outermost entries of `out` from `first` on.
pub fn rows_into(out: &mut Tensor, first: usize, x: &Tensor) {
    let fits = out.shape()[1..] == x.shape()[1..] && first + x.dim(0) <= out.dim(0);
    assert!(fits && out.dtype() == x.dtype(), "copy: {x:?} to row {first} of {out:?}");
    let inner: usize = x.shape()[1..].iter().product();
    dispatch!(x, flat_into(out, first * inner, x), [moved(x)]);
}

/// The numbers of `x` as those of `out` from `first` on, whatever the shapes.
pub fn flat_into(out: &mut Tensor, first: usize, x: &Tensor) {
    let fits = first + x.len() <= out.len() && out.dtype() == x.dtype();
    assert!(fits, "copy: {x:?} to element {first} of {out:?}");
    dispatch!(x, flat_into(out, first, x), [moved(x)]);
}

/// `x` `[b, m, w]` as the block of `out` `[b, n, d]` that begins at token `token` and column `column`.
pub fn block_into(out: &mut Tensor, token: usize, column: usize, x: &Tensor) {
    let (&[b, n, d], &[same, m, w]) = (out.shape(), x.shape()) else { panic!("copy: {x:?} into {out:?}") };
    let fits = b == same && token + m <= n && column + w <= d && out.dtype() == x.dtype();
    assert!(fits, "copy: {x:?} to ({token}, {column}) of {out:?}");
    dispatch!(x, block_into(out, token, column, x), [moved(x)]);
}

/// Columns `first..first + width` of the last axis of `x`.
pub fn columns(x: &Tensor, first: usize, width: usize) -> Tensor {
    assert!(first + width <= x.width(), "columns {first}..{} of {x:?}", first + width);
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = width;
    let mut out = x.scratch_like(&shape);
    dispatch!(x, columns(&mut out, x, first), [moved(&out)]);
    out
}

/// The numbers of `x`, rounded to the floating-point type `dtype`; `x` itself if it is of that type.
pub fn cast(x: &Tensor, dtype: DType) -> Tensor {
    if x.dtype() == dtype {
        return x.clone();
    }
    let mut out = Tensor::scratch_of(&x.device(), dtype, x.shape());
    dispatch!(x, cast(&mut out, x));
    out
}
