//! 1x1 convolutions with what follows them in mobile networks; forward only, and without kernels: of rewards.
//!
//! Every element of the result is one chain of fused multiply-adds over the input channels, cut after a fixed length: the
//! same bits for any batch and any number of threads.

mod cpu;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cpu::bend;

use super::on_cpu;
use crate::device::Tensor;

/// The non-linearities of mobile networks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// `x`.
    Line,
    /// `max(x, 0)`.
    Relu,
    /// `x·min(max(x + 3, 0), 6)/6`.
    HardSwish,
    /// `min(max(slope·x + 1/2, 0), 1)`.
    HardSigmoid {
        /// The slope: 1/6 in PyTorch, 1/5 where a model was trained with Paddle's older layers.
        slope: f32,
    },
    /// `x·sigmoid(x)`.
    Silu,
    /// `1/(1 + e^-x)`.
    Sigmoid,
}

/// What becomes of the result `x` of a convolution: `scale·curve(x) + shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bend {
    /// The curve.
    pub curve: Curve,
    /// The factor on it.
    pub scale: f32,
    /// What is added to it.
    pub shift: f32,
}

impl From<Curve> for Bend {
    fn from(curve: Curve) -> Self {
        Self { curve, scale: 1.0, shift: 0.0 }
    }
}

/// `y = bend(x·Wᵀ + bias) (+ add)`. `x` `[.., in]`, `w` `[out, in]`, `bias` `[out]`, `add` as the result; returns
/// `[.., out]`.
pub fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, bend: impl Into<Bend>, add: Option<&Tensor>) -> Tensor {
    let &[outputs, inputs] = w.shape() else { panic!("pointwise: weight {w:?}") };
    let fits = x.width() == inputs && bias.is_none_or(|b| b.len() == outputs);
    assert!(fits, "pointwise: x {x:?}, weight {w:?}, bias {bias:?}");
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = outputs;
    let mut y = x.scratch_like(&shape);
    assert!(add.is_none_or(|add| add.shape() == shape), "pointwise: add {add:?} to {y:?}");
    on_cpu!(y, forward(&mut y, x, w, bias, bend.into(), add));
    y
}

/// `bend(x)` of every element, in place.
pub fn apply(x: &mut Tensor, bend: impl Into<Bend>) {
    on_cpu!(x, apply(x, bend.into()));
}
