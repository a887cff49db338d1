//! Softmax attention over head-major operands.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::Tensor;
use crate::ops::heads::Part;

/// What may attend to what, beyond the product of queries and keys.
#[derive(Clone, Copy, Default)]
pub struct Mask<'a> {
    /// A token sees only itself and those before it.
    pub causal: bool,
    /// Added to the scaled scores, `[heads, n, n]`.
    pub bias: Option<&'a Tensor>,
}

/// The result of attention over one sequence.
pub struct Attention {
    /// `[b, n, heads·d]`.
    pub out: Tensor,
    /// Logarithm of each softmax's denominator, `[b, heads, n]`; what the backward needs to redo the softmax.
    pub lse: Tensor,
}

/// `out = softmax(scale·q·kᵀ + bias)·v` per head. `q`, `k`, `v` `[b, heads, n, d]`.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: Mask) -> Attention {
    let (out, lse) = cpu::forward(q, k, v, scale, mask);
    let n = q.dim(2);
    Attention { out: super::heads::merge(&out, Part { offset: 0, len: n }), lse }
}

/// Attention over a joint sequence whose parts are wanted separately: `out[i]` is `[b, parts[i].len, heads·d]`.
pub fn forward_joint(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, parts: &[Part]) -> (Vec<Tensor>, Tensor) {
    let (out, lse) = cpu::forward(q, k, v, scale, Mask::default());
    (parts.iter().map(|p| super::heads::merge(&out, *p)).collect(), lse)
}

/// The gradients `(dq, dk, dv)`, `[b, heads, n, d]` each. `out` and `dout` hold one tensor per part, in the
/// order and shape of [`forward_joint`]; `lse` is what the forward gave; no mask.
pub fn backward(
    dout: &[&Tensor],
    out: &[&Tensor],
    lse: &Tensor,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    scale: f32,
    parts: &[Part],
) -> (Tensor, Tensor, Tensor) {
    let join = |pieces: &[&Tensor]| {
        let mut joint = Tensor::scratch(q.shape());
        for (piece, part) in pieces.iter().zip(parts) {
            super::heads::split_into(&mut joint, piece, *part, None);
        }
        joint
    };
    cpu::backward(&join(dout), &join(out), lse, (q, k, v), scale)
}
