//! 1x1 convolutions with what follows them in mobile networks; forward only, in single precision: of rewards.
//!
//! Every element of the result is one chain of fused multiply-adds over the input channels, cut after a fixed length: the
//! same bits for any batch, any number of threads and any device.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

pub(in crate::ops) use cpu::bend;
pub(in crate::ops) use cuda::bend_arg;

use super::dispatch;
use crate::device::work::{Kind, Work};
use crate::device::{DType, Tensor};

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

/// A weight `[out, in]` in the order that [`forward`] reads it.
pub struct Weight {
    /// On the CPU panels of columns, those of every chain of steps after one another: `[in, out]` with `out` rounded up. On a
    /// GPU as it was.
    packed: Tensor,
    inputs: usize,
    outputs: usize,
}

impl Weight {
    /// `w` `[out, in]`, as files have it.
    pub fn of(w: &Tensor) -> Self {
        let &[outputs, inputs] = w.shape() else { panic!("pointwise: weight {w:?}") };
        let mut packed = w.clone();
        dispatch!(w, pack(&mut packed));
        Self { packed, inputs, outputs }
    }

    /// Channels that come out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// `y = bend(x·Wᵀ + bias) (+ add)`. `x` `[.., in]`, `w` of `[out, in]`, `bias` `[out]`, `add` as the result; returns
/// `[.., out]`.
pub fn forward(x: &Tensor, w: &Weight, bias: Option<&Tensor>, bend: impl Into<Bend>, add: Option<&Tensor>) -> Tensor {
    let Weight { inputs, outputs, .. } = *w;
    let fits = x.width() == inputs && bias.is_none_or(|b| b.len() == outputs);
    assert!(fits && x.dtype() == DType::F32, "pointwise: x {x:?}, weight of {inputs} to {outputs}, bias {bias:?}");
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = outputs;
    let mut y = x.scratch_like(&shape);
    assert!(add.is_none_or(|add| add.shape() == shape), "pointwise: add {add:?} to {y:?}");
    let read = x.bytes() + w.packed.bytes() + add.map_or(0, Tensor::bytes);
    let work = Work::of(Kind::Convolution, DType::F32, [y.rows(), outputs, inputs]).moving(read, y.bytes());
    dispatch!(y, forward(&mut y, x, &w.packed, bias, bend.into(), add), [work]);
    y
}

/// `bend(x)` of every element, in place.
pub fn apply(x: &mut Tensor, bend: impl Into<Bend>) {
    assert_eq!(x.dtype(), DType::F32, "bend");
    dispatch!(x, apply(x, bend.into()));
}
