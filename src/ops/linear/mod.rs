//! `y = x·Wᵀ + b`, the same with a low-rank addition `+ s·(x·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021), and what usually follows it in
//! the same pass.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;
mod work;

use std::ops::Range;

use super::activation::Activation;
use super::adaln::Chunk;
use super::{dequantise, dispatch};
use crate::device::{DType, Tensor};

/// A frozen layer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `W`, `[out, in]`; decoded for as long as an op runs if it is stored in blocks.
    pub weight: &'a Tensor,
    /// `b`, `[out]`.
    pub bias: Option<&'a Tensor>,
}

/// The low-rank factors that some samples of a batch go through.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The samples: entries of the outermost axis of `x`. Those of different factors do not overlap.
    pub samples: Range<usize>,
    /// `A`, `[rank, in]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`.
    pub b: Tensor,
    /// `s = alpha / rank`.
    pub scale: f32,
}

/// What is done to `y` while it is at hand.
#[derive(Clone, Copy, Default)]
pub enum Then<'a> {
    /// Nothing.
    #[default]
    Nothing,
    /// `activation(y)`.
    Activate(Activation),
    /// `residual + y`.
    Add(&'a Tensor),
    /// `residual + gate·y`, `residual` shaped as `y` `[b, n, out]`.
    AddGated {
        /// What is added to.
        residual: &'a Tensor,
        /// The factor, one vector per sample.
        gate: Chunk<'a>,
    },
}

/// A layer with its low-rank additions.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// The frozen layer.
    pub layer: Layer<'a>,
    /// The additions; samples that none names go through the layer alone.
    pub lora: &'a [Lora],
}

impl<'a> From<Layer<'a>> for Adapted<'a> {
    fn from(layer: Layer<'a>) -> Self {
        Self { layer, lora: &[] }
    }
}

impl<'a> Adapted<'a> {
    /// The same layer with `weight` in the place of its own.
    fn with<'b>(self, weight: &'b Tensor) -> Adapted<'b>
    where
        'a: 'b,
    {
        Adapted { layer: Layer { weight, bias: self.layer.bias }, lora: self.lora }
    }

    fn check(&self, x: &Tensor) {
        let (inputs, outputs) = (self.layer.weight.dim(1), self.layer.weight.dim(0));
        assert_eq!(x.width(), inputs, "linear: x {x:?}, weight {:?}", self.layer.weight);
        assert!(self.layer.bias.is_none_or(|b| b.len() == outputs), "linear: bias {:?}", self.layer.bias);
        for l in self.lora {
            let rank = l.a.dim(0);
            let fits = l.a.shape() == [rank, inputs] && l.b.shape() == [outputs, rank] && l.samples.end <= x.dim(0);
            assert!(fits, "linear: x {x:?}, weight {:?}, lora {l:?}", self.layer.weight);
        }
    }

    /// Where `x·Aᵀ` of each addition goes, `[samples, .., rank]`.
    fn low(&self, x: &Tensor) -> Vec<Tensor> {
        let per_sample = x.rows() / x.dim(0).max(1);
        self.lora.iter().map(|l| x.scratch_like(&[l.samples.len() * per_sample, l.a.dim(0)])).collect()
    }
}

fn with_width(x: &Tensor, width: usize) -> Tensor {
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = width;
    x.scratch_like(&shape)
}

/// `then(x·Wᵀ + b (+ s·(x·Aᵀ)·Bᵀ))`. `x` `[.., in]`; returns `[.., out]`.
///
/// Weights in bf16 are multiplied in bf16 and summed in f32 where the device can, and those in f16 in f16 on a GPU, which
/// rounds `x`, which must be in their range, and the factors to the type of the weight; other halves are widened. Weights in
/// blocks are as if in bf16 on a GPU, in f32 on the CPU.
pub fn forward<'a>(x: &Tensor, layer: impl Into<Adapted<'a>>, then: Then) -> Tensor {
    let layer = layer.into();
    let weight = dequantise::operand(layer.layer.weight);
    let layer = layer.with(&weight);
    layer.check(x);
    let mut y = with_width(x, layer.layer.weight.dim(0));
    match then {
        Then::Nothing | Then::Activate(_) => {}
        Then::Add(residual) => assert_eq!(residual.shape(), y.shape(), "linear: residual"),
        Then::AddGated { residual, gate } => {
            assert_eq!(residual.shape(), y.shape(), "linear: residual");
            gate.check(y.dim(0), y.dim(2));
        }
    }
    let mut low = layer.low(x);
    dispatch!(
        x,
        forward(&mut [&mut y], None, &mut [&mut low], x, &[layer], then),
        work::forward(x, &[layer], None, then)
    );
    y
}

/// Several layers of one input, which is read once: queries, keys and values.
pub fn forward_each<const N: usize>(x: &Tensor, layers: [Adapted; N]) -> [Tensor; N] {
    let weights = layers.map(|l| dequantise::operand(l.layer.weight));
    let layers: [Adapted; N] = std::array::from_fn(|i| layers[i].with(&weights[i]));
    layers.iter().for_each(|l| l.check(x));
    let mut y = layers.map(|l| with_width(x, l.layer.weight.dim(0)));
    let mut low = layers.map(|l| l.low(x));
    let mut outputs: Vec<&mut Tensor> = y.iter_mut().collect();
    let mut lows: Vec<&mut Vec<Tensor>> = low.iter_mut().collect();
    let then = Then::Nothing;
    dispatch!(x, forward(&mut outputs, None, &mut lows, x, &layers, then), work::forward(x, &layers, None, then));
    y
}

/// `(activation(h), h of the first kept samples)` with `h` as in [`forward`].
pub fn forward_activated(x: &Tensor, layer: Adapted, activation: Activation, kept: usize) -> (Tensor, Tensor) {
    let weight = dequantise::operand(layer.layer.weight);
    let layer = layer.with(&weight);
    layer.check(x);
    let mut y = with_width(x, layer.layer.weight.dim(0));
    let mut shape = y.shape().to_vec();
    shape[0] = kept;
    let mut hidden = x.scratch_like(&shape);
    let mut low = layer.low(x);
    let then = Then::Activate(activation);
    dispatch!(
        x,
        forward(&mut [&mut y], Some(&mut hidden), &mut [&mut low], x, &[layer], then),
        work::forward(x, &[layer], Some(&hidden), then)
    );
    (y, hidden)
}

/// What to do with the gradient to the input.
pub enum InputGrad<'a> {
    /// It is not needed.
    Skip,
    /// Store it.
    Overwrite(&'a mut Tensor),
    /// Add it to what is there.
    Add(&'a mut Tensor),
}

/// Where the gradients of the low-rank factors are added up: a flat buffer of which each owns a part.
pub struct LoraGrad<'a> {
    /// All gradients.
    pub flat: &'a mut Tensor,
    /// Where `dL/dA` `[rank, in]` begins.
    pub a: usize,
    /// Where `dL/dB` `[out, rank]` begins.
    pub b: usize,
}

/// The gradient to the input, `dx = dy·W (+ s·(dy·B)·A)`, and the gradients of the factors, added to what is there:
/// `dB += s·dyᵀ·(x·Aᵀ)`, `dA += s·(dy·B)ᵀ·x`. The frozen weight gets none.
///
/// `dy` `[.., out]`; `x` `[.., in]` as given to [`forward`], needed where there is a `grad`; `lora` covers all samples or
/// is absent; `dx` `[.., in]`.
pub fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<&Lora>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    let (outputs, inputs) = (weight.dim(0), weight.dim(1));
    assert_eq!(dy.width(), outputs, "linear backward: dy {dy:?}, weight {weight:?}");
    if let InputGrad::Overwrite(dx) | InputGrad::Add(dx) = &dx {
        assert_eq!((dx.rows(), dx.width()), (dy.rows(), inputs), "linear backward: dx {dx:?}");
    }
    // dy·B and, where the factors are trained, x·Aᵀ.
    let mut low = lora.map(|l| {
        assert!(l.samples == (0..dy.dim(0)), "linear backward: lora of samples {:?} of {dy:?}", l.samples);
        let low = || dy.scratch_like(&[dy.rows(), l.a.dim(0)]);
        (low(), grad.is_some().then(low))
    });
    let x = x.filter(|_| grad.is_some());
    let weight = match dx {
        // Not looked at.
        InputGrad::Skip => weight.clone(),
        _ => dequantise::operand(weight),
    };
    assert!(grad.is_none() || x.is_some(), "linear backward: the input is saved wherever a LoRA is trained");
    let moved = match &dx {
        InputGrad::Skip => None,
        InputGrad::Overwrite(dx) => Some([0, dx.bytes()]),
        InputGrad::Add(dx) => Some([dx.bytes(); 2]),
    };
    dispatch!(
        dy,
        backward(dy, &weight, x, lora.zip(low.as_mut()), grad, dx),
        work::backward(dy, &weight, x, lora, moved)
    );
}

/// `W + s·B·A` in the type of `W`, or in f32 if that is stored in blocks; forms no gradient.
pub fn merge(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Tensor {
    let (outputs, inputs, rank) = (weight.dim(0), weight.dim(1), a.dim(0));
    assert!(a.shape() == [rank, inputs] && b.shape() == [outputs, rank], "merge: {weight:?}, a {a:?}, b {b:?}");
    let weight = dequantise::forward(weight);
    let mut merged = Tensor::scratch_of(&weight.device(), weight.dtype(), weight.shape());
    dispatch!(weight, merge(&mut merged, &weight, a, b, scale));
    merged
}

/// `weight` rounded to another floating-point type.
pub fn rounded(weight: &Tensor, dtype: DType) -> Tensor {
    let weight = dequantise::forward(weight);
    let mut out = Tensor::scratch_of(&weight.device(), dtype, weight.shape());
    dispatch!(weight, round(&mut out, &weight));
    out
}
