//! `y = x·Wᵀ + b`, the same with a low-rank addition `+ s·(x·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021), and what usually follows it in
//! the same pass. Products that do not wait for one another are asked for in one call, so that a device can do them in one
//! launch; each has the bits that it has alone.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod tests;
mod work;

use std::ops::Range;

pub use cuda::hopper::{Variant, product_by, variants};

use super::activation::Activation;
use super::adaln::Chunk;
use super::{dequantise, dispatch, rms_norm};
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
    /// The RMS norm of every head, as [`rms_norm::forward`] of `y` as it is stored.
    Normalise {
        /// One number per column of a head.
        weight: &'a Tensor,
        /// Added to the mean square.
        eps: f32,
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

/// One product of several.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The input, `[.., in]`.
    pub x: &'a Tensor,
    /// What it goes through.
    pub layer: Adapted<'a>,
    /// What follows.
    pub then: Then<'a>,
    /// How many samples, from the first on, a backward is for.
    pub kept: usize,
}

/// What comes of a [`Call`].
pub struct Output {
    /// `then(h)`, `[.., out]`, with `h = x·Wᵀ + b (+ s·(x·Aᵀ)·Bᵀ)`.
    pub y: Tensor,
    /// `h` of the kept samples, which the backward of an activation or a norm starts from; of none before anything else.
    pub hidden: Tensor,
    /// Of a norm, `1/rms` of every head of the kept samples, `[kept, ..rows.., heads]`, in single precision.
    pub inverse_rms: Option<Tensor>,
}

impl<'a> Call<'a> {
    fn new(x: &'a Tensor, layer: Adapted<'a>, then: Then<'a>) -> Self {
        Self { x, layer, then, kept: 0 }
    }

    /// The same with `weight` in the place of the layer's own.
    fn with<'b>(self, weight: &'b Tensor) -> Call<'b>
    where
        'a: 'b,
    {
        Call { layer: self.layer.with(weight), ..self }
    }

    /// Room for what comes of it.
    fn output(&self) -> Output {
        let x = self.x;
        self.layer.check(x);
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("at least one axis") = self.layer.layer.weight.dim(0);
        let y = x.scratch_like(&shape);
        match self.then {
            Then::Nothing | Then::Activate(_) => {}
            Then::Add(residual) => assert_eq!(residual.shape(), y.shape(), "linear: residual"),
            Then::AddGated { residual, gate } => {
                assert_eq!(residual.shape(), y.shape(), "linear: residual");
                gate.check(y.dim(0), y.dim(2));
            }
            Then::Normalise { weight, .. } => rms_norm::check(&y, weight),
        }
        shape[0] = if matches!(self.then, Then::Activate(_) | Then::Normalise { .. }) { self.kept } else { 0 };
        let hidden = x.scratch_like(&shape);
        let inverse_rms = match self.then {
            Then::Normalise { weight, .. } => Some(rms_norm::room_for_inverse(&hidden, weight)),
            _ => None,
        };
        Output { y, hidden, inverse_rms }
    }
}

/// `then(x·Wᵀ + b (+ s·(x·Aᵀ)·Bᵀ))` of every call, in their order.
///
/// Weights in bf16 are multiplied in bf16 and summed in f32 where the device can, and those in f16 in f16 on a GPU, which
/// rounds `x`, which must be in their range, and the factors to the type of the weight; other halves are widened. Weights in
/// blocks are as if in bf16 on a GPU, in f32 on the CPU.
pub fn forward_group(calls: &[Call]) -> Vec<Output> {
    let Some(first) = calls.first() else { return Vec::new() };
    let weights: Vec<Tensor> = calls.iter().map(|c| dequantise::operand(c.layer.layer.weight)).collect();
    let calls: Vec<Call> = calls.iter().zip(&weights).map(|(c, w)| c.with(w)).collect();
    let mut outputs: Vec<Output> = calls.iter().map(Call::output).collect();
    let mut low: Vec<Vec<Tensor>> = calls.iter().map(|c| c.layer.low(c.x)).collect();
    dispatch!(first.x, forward(&mut outputs, &mut low, &calls), work::forward(&calls));
    outputs
}

/// One call of [`forward_group`]. `x` `[.., in]`; returns `[.., out]`.
pub fn forward<'a>(x: &Tensor, layer: impl Into<Adapted<'a>>, then: Then) -> Tensor {
    let [output] = each([Call::new(x, layer.into(), then)]);
    output.y
}

/// Several layers of one input, which is read once: queries, keys and values.
pub fn forward_each<const N: usize>(x: &Tensor, layers: [Adapted; N]) -> [Tensor; N] {
    each(layers.map(|layer| Call::new(x, layer, Then::Nothing))).map(|output| output.y)
}

/// `(activation(h), h of the first kept samples)` with `h` as in [`Output`].
pub fn forward_activated(x: &Tensor, layer: Adapted, activation: Activation, kept: usize) -> (Tensor, Tensor) {
    let [output] = each([Call { kept, ..Call::new(x, layer, Then::Activate(activation)) }]);
    (output.y, output.hidden)
}

fn each<const N: usize>(calls: [Call; N]) -> [Output; N] {
    forward_group(&calls).try_into().unwrap_or_else(|_| unreachable!("one output per call"))
}

/// What to do with the gradient to the input.
pub enum InputGrad<'a> {
    /// It is not needed.
    Skip,
    /// Store it.
    Overwrite(&'a mut Tensor),
    /// Add it to what is there.
    Add(&'a mut Tensor),
    /// Store that to `hidden`, of which the input of a single layer is [`Activation::GeluTanh`].
    ThroughGelu {
        /// Where.
        dx: &'a mut Tensor,
        /// What the activation was given.
        hidden: &'a Tensor,
    },
}

impl InputGrad<'_> {
    fn target(&self) -> Option<&Tensor> {
        match self {
            Self::Skip => None,
            Self::Overwrite(dx) | Self::Add(dx) | Self::ThroughGelu { dx, .. } => Some(dx),
        }
    }
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

/// A layer on the way back.
#[derive(Clone, Copy)]
pub struct Branch<'a> {
    /// The gradient to its output, `[.., out]`.
    pub dy: &'a Tensor,
    /// `W`, `[out, in]`.
    pub weight: &'a Tensor,
    /// The factors that all samples went through.
    pub lora: Option<&'a Lora>,
    /// Where in the flat buffer those of `A` and of `B` begin, if the factors are trained.
    pub grad: Option<[usize; 2]>,
}

/// The layers that read one input, on the way back.
pub struct Backward<'a> {
    /// The input, `[.., in]`, where factors are trained.
    pub x: Option<&'a Tensor>,
    /// The layers.
    pub branches: Vec<Branch<'a>>,
    /// Where the gradient to the input goes: the sum over the branches, in their order.
    pub dx: InputGrad<'a>,
}

impl Branch<'_> {
    fn lows(&self) -> Lows {
        self.lora.map(|l| {
            let low = || self.dy.scratch_like(&[self.dy.rows(), l.a.dim(0)]);
            (low(), self.grad.is_some().then(low))
        })
    }
}

impl Backward<'_> {
    /// Those of the branches, decoded where they are looked at.
    fn weights(&self) -> Vec<Tensor> {
        let weights = self.branches.iter().map(|b| b.weight);
        match self.dx {
            InputGrad::Skip => weights.cloned().collect(),
            _ => weights.map(dequantise::operand).collect(),
        }
    }

    fn check(&self) {
        for Branch { dy, weight, lora, grad } in &self.branches {
            assert_eq!(dy.width(), weight.dim(0), "linear backward: dy {dy:?}, weight {weight:?}");
            if let Some(dx) = self.dx.target() {
                assert_eq!((dx.rows(), dx.width()), (dy.rows(), weight.dim(1)), "linear backward: dx {dx:?}");
            }
            if let Some(l) = lora {
                assert!(l.samples == (0..dy.dim(0)), "linear backward: lora of samples {:?} of {dy:?}", l.samples);
            }
            let has_input = grad.is_none() || self.x.is_some();
            assert!(has_input, "linear backward: the input is saved wherever a LoRA is trained");
        }
        if let InputGrad::ThroughGelu { dx, hidden } = &self.dx {
            assert_eq!((dx.shape(), dx.dtype()), (hidden.shape(), hidden.dtype()), "linear backward: hidden");
            assert_eq!(self.branches.len(), 1, "linear backward: branches through an activation");
        }
    }
}

/// Room for `dy·B` of a branch and, where its factors are trained, for `x·Aᵀ`.
type Lows = Option<(Tensor, Option<Tensor>)>;

/// For every input the gradient to it, `dx = Σ dy·W (+ s·(dy·B)·A)` over its branches, and the gradients of their factors,
/// added to what `flat` holds: `dB += s·dyᵀ·(x·Aᵀ)`, `dA += s·(dy·B)ᵀ·x`. Frozen weights get none. All `dx` are different
/// tensors.
pub fn backward_group(calls: Vec<Backward>, flat: Option<&mut Tensor>) {
    let Some(first) = calls.iter().find_map(|c| c.branches.first()) else { return };
    let on = first.dy.clone();
    let weights: Vec<Vec<Tensor>> = calls.iter().map(Backward::weights).collect();
    let decoded = calls.into_iter().zip(&weights).map(|(call, weights)| {
        call.check();
        let branches = call.branches.iter().zip(weights).map(|(b, weight)| Branch { weight, ..*b }).collect();
        Backward { branches, ..call }
    });
    let mut calls: Vec<Backward> = decoded.collect();
    let mut lows: Vec<Vec<Lows>> = calls.iter().map(|c| c.branches.iter().map(Branch::lows).collect()).collect();
    dispatch!(on, backward(&mut calls, &mut lows, flat), work::backward(&calls));
}

/// [`backward_group`] of one layer. `dy` `[.., out]`; `x` `[.., in]` as given to [`forward`], needed where there is a
/// `grad`; `lora` covers all samples or is absent; `dx` `[.., in]`.
pub fn backward(
    dy: &Tensor,
    weight: &Tensor,
    x: Option<&Tensor>,
    lora: Option<&Lora>,
    grad: Option<LoraGrad>,
    dx: InputGrad,
) {
    let branch = Branch { dy, weight, lora, grad: grad.as_ref().map(|g| [g.a, g.b]) };
    backward_group(vec![Backward { x, branches: vec![branch], dx }], grad.map(|g| g.flat));
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
