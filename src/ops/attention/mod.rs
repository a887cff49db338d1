//! Softmax attention over token-major operands `[b, n, heads·d]`, in which the heads of a token lie side by side as the
//! projections leave them. A sequence may consist of parts, such as image and text tokens, that attend to one another as
//! if they were one; nothing is put together or taken apart.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cpu::{Head, HeadOut, cut, scores_total, softmax, tile_rows};
pub(in crate::ops) use cuda::Sequence;
pub use cuda::{BackwardVariant, ForwardVariant, backward_variants, forward_variants};

use super::dispatch;
use crate::device::work::{Kind, Work};
use crate::device::{DType, Tensor};

/// Queries, keys and values of one part of a sequence, `[b, n, heads·d]` each.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

/// How a width is divided into heads, and how their scores are made.
#[derive(Clone, Copy)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// What the products' operands are rounded to where the device multiplies it, with sums in f32: the type of the
    /// model's weights. Where it does not, and with f32, nothing is rounded.
    pub compute: DType,
}

/// What may attend to what, beyond the product of queries and keys. Only for sequences of one part.
#[derive(Clone, Copy, Default)]
pub struct Mask<'a> {
    /// A token sees only itself and those before it.
    pub causal: bool,
    /// Added to the scaled scores, `[heads, n, n]`.
    pub bias: Option<&'a Tensor>,
}

/// The result of attention over one sequence.
pub struct Attention {
    /// One per part, shaped as its queries.
    pub out: Vec<Tensor>,
    /// Logarithm of each softmax's denominator, `[b, heads, n]` over all parts; what the backward needs to redo the
    /// softmax.
    pub lse: Tensor,
}

/// What the backward starts from, for one part.
#[derive(Clone, Copy)]
pub struct OutputGrad<'a> {
    /// What the forward gave.
    pub out: &'a Tensor,
    /// The gradient to it.
    pub dout: &'a Tensor,
}

/// The gradients to the operands of one part.
pub struct PartGrad {
    /// To the queries; absent where nothing read the part's result.
    pub q: Option<Tensor>,
    /// To the keys.
    pub k: Tensor,
    /// To the values.
    pub v: Tensor,
}

fn check(parts: &[Part], heads: usize) -> usize {
    let first = parts[0].q;
    let width = first.dim(2);
    assert!(width.is_multiple_of(heads), "attention: {heads} heads of {first:?}");
    for Part { q, k, v } in parts {
        let fits = k.shape() == q.shape() && v.shape() == q.shape() && q.dim(0) == first.dim(0) && q.dim(2) == width;
        assert!(fits, "attention: q {q:?}, k {k:?}, v {v:?}");
    }
    parts.iter().map(|p| p.q.dim(1)).sum()
}

impl Heads {
    /// What a GPU multiplies.
    fn multiplied(&self) -> DType {
        if let DType::Blocks(_) = self.compute { DType::Bf16 } else { self.compute }
    }
}

/// `out = softmax(scale·q·kᵀ + bias)·v` per head, over all parts together.
pub fn forward(parts: &[Part], heads: Heads, mask: Mask) -> Attention {
    let (mut out, mut lse) = results(parts, heads, mask);
    let first = parts[0].q;
    let work = || {
        let shape = [first.dim(0) * heads.count, lse.dim(2), first.dim(2) / heads.count];
        let read = 3 * first.dtype().bytes(shape.iter().product()) + mask.bias.map_or(0, Tensor::bytes);
        Work::of(Kind::Attention, heads.multiplied(), shape).moving(read, read / 3 + lse.bytes())
    };
    dispatch!(first, forward(&mut out, &mut lse, parts, heads, mask), [work()]);
    Attention { out, lse }
}

/// As [`forward`] without a mask, in bf16 by one of the [`forward_variants`]: for comparison, on a Hopper GPU.
pub fn forward_by(variant: ForwardVariant, parts: &[Part], heads: Heads) -> Attention {
    let (mut out, mut lse) = results(parts, heads, Mask::default());
    cuda::forward_by(Some(variant), &mut out, &mut lse, parts, heads, Mask::default());
    Attention { out, lse }
}

/// Room for the results of the forward.
fn results(parts: &[Part], heads: Heads, mask: Mask) -> (Vec<Tensor>, Tensor) {
    let n = check(parts, heads.count);
    assert!(parts.len() == 1 || (!mask.causal && mask.bias.is_none()), "attention: a mask over several parts");
    assert!(mask.bias.is_none_or(|b| b.shape() == [heads.count, n, n]), "attention: bias {:?}", mask.bias);
    let first = parts[0].q;
    let out = parts.iter().map(|p| p.q.scratch_like(p.q.shape())).collect();
    (out, Tensor::scratch(&first.device(), &[first.dim(0), heads.count, n]))
}

/// Checks the operands of a backward, and makes room for its results.
fn gradients(outputs: &[Option<OutputGrad>], lse: &Tensor, parts: &[Part], heads: Heads) -> Vec<PartGrad> {
    let n = check(parts, heads.count);
    assert!(lse.shape() == [parts[0].q.dim(0), heads.count, n] && outputs.len() == parts.len(), "attention backward");
    let of = |(p, output): (&Part, &Option<OutputGrad>)| {
        let fits = output.is_none_or(|o| o.out.shape() == p.q.shape() && o.dout.shape() == p.q.shape());
        assert!(fits, "attention backward: out of {:?}", p.q);
        let like = || p.q.scratch_like(p.q.shape());
        PartGrad { q: output.map(|_| like()), k: like(), v: like() }
    };
    parts.iter().zip(outputs).map(of).collect()
}

/// The gradients to all operands, one entry per part; `outputs` has one per part, absent where nothing read its result;
/// `lse` is what the forward gave. No mask.
pub fn backward(outputs: &[Option<OutputGrad>], lse: &Tensor, parts: &[Part], heads: Heads) -> Vec<PartGrad> {
    let mut grads = gradients(outputs, lse, parts, heads);
    let work = || {
        let (first, n) = (parts[0].q, lse.dim(2));
        let shape = [first.dim(0) * heads.count, n, first.dim(2) / heads.count];
        let queries: usize = parts.iter().zip(outputs).filter(|(_, o)| o.is_some()).map(|(p, _)| p.q.dim(1)).sum();
        let whole = Work::of(Kind::AttentionGrad, heads.multiplied(), shape);
        let share = |of: u64| of / n as u64 * queries as u64;
        let operand = first.dtype().bytes(shape.iter().product());
        let share = Work { flops: share(whole.flops), exps: share(whole.exps), ..whole };
        share.moving(5 * operand + lse.bytes(), 3 * operand)
    };
    dispatch!(lse, backward(&mut grads, outputs, lse, parts, heads), [work()]);
    grads
}

/// As [`backward`], in one of the ways of [`backward_variants`], which are for heads of 64 in bf16 on Hopper: to be timed.
pub fn backward_by(
    variant: BackwardVariant,
    outputs: &[Option<OutputGrad>],
    lse: &Tensor,
    parts: &[Part],
    heads: Heads,
) -> Vec<PartGrad> {
    let mut grads = gradients(outputs, lse, parts, heads);
    cuda::backward_by(variant, &mut grads, outputs, lse, parts, heads);
    grads
}
