//! Softmax attention of one sequence to another, over token-major operands as in [`attention`](super::attention). A GPU
//! computes it in single precision, whatever is asked for: it is a small part of the networks that have it.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::attention::Heads;
use super::dispatch;
use crate::device::{DType, Tensor};

/// `softmax(scale·q·kᵀ)·v` per head. `q` `[b, m, heads·d]`, `k` and `v` `[b, n, heads·d]`; returns the shape of `q`.
///
/// `sees`, `[b, n, m]`, says what a query may look at: the keys where `sigmoid` of its number is at least 1/2. A query that may
/// see nothing sees everything (masked attention, Cheng et al. 2022).
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, sees: Option<&Tensor>) -> Tensor {
    let (&[b, m, width], &[_, n, _]) = (q.shape(), k.shape()) else { panic!("cross attention: q {q:?}, k {k:?}") };
    let fits = k.shape() == [b, n, width] && v.shape() == k.shape() && width.is_multiple_of(heads.count) && n > 0;
    assert!(fits, "cross attention: {} heads, q {q:?}, k {k:?}, v {v:?}", heads.count);
    assert!(
        sees.is_none_or(|s| s.shape() == [b, n, m] && s.dtype() == DType::F32),
        "cross attention: q {q:?}, k {k:?}, sees {sees:?}"
    );
    let mut out = q.scratch_like(q.shape());
    dispatch!(q, forward(&mut out, q, k, v, heads, sees));
    out
}
