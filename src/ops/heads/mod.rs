//! Between token-major projections `[b, n, heads·d]` and head-major attention operands `[b, heads, total, d]`,
//! with the q/k RMS norm of SD3.5 on the way. Text and image tokens go into one joint operand at different offsets.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Tensor, Weight};

/// As in diffusers' `Attention(qk_norm="rms_norm")`.
pub const EPS: f32 = 1e-6;

/// Which part of a joint operand a projection fills.
#[derive(Clone, Copy)]
pub struct Part {
    /// First token.
    pub offset: usize,
    /// Number of tokens.
    pub len: usize,
}

/// Writes tokens `part` of `out` `[b, heads, total, d]` from `x` `[b, part.len, heads·d]`, each head RMS-normalised
/// with `norm` `[d]` if there is one. Other tokens of `out` stay as they are.
pub fn split_into(out: &mut Tensor, x: &Tensor, part: Part, norm: Option<&Weight>) {
    let want = [out.dim(0), part.len, out.dim(1) * out.dim(3)];
    assert_eq!(x.shape(), want, "heads: into {:?}", out.shape());
    cpu::split_into(out, x, part, norm);
}

/// `x` `[b, n, heads·d]` as `[b, heads, n, d]`.
pub fn split(x: &Tensor, heads: usize) -> Tensor {
    let (b, n, d) = (x.dim(0), x.dim(1), x.dim(2) / heads);
    let mut out = Tensor::scratch(&[b, heads, n, d]);
    split_into(&mut out, x, Part { offset: 0, len: n }, None);
    out
}

/// Tokens `part` of `x` `[b, heads, total, d]` as `[b, part.len, heads·d]`.
pub fn merge(x: &Tensor, part: Part) -> Tensor {
    cpu::merge(x, part)
}

/// The gradient of [`split_into`]: from `dout` `[b, heads, total, d]` to `x` `[b, part.len, heads·d]`, which is
/// needed as it was given wherever there is a `norm`.
pub fn backward(dout: &Tensor, part: Part, x: &Tensor, norm: Option<&Weight>) -> Tensor {
    cpu::backward(dout, part, x, norm)
}
