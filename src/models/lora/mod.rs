//! Low-rank adapters on one frozen base (LoRA, Hu et al. 2021): the trained policy, its lagged copy and the
//! reference are the same weights with one adapter, another, or none, and rows of one batch may go through different ones.

mod bank;
pub mod file;
pub mod merge;
mod settings;

use anyhow::{Result, bail};

use super::Linear;
use crate::device::Tensor;
use crate::io::did_you_mean;
use crate::ops::activation::Activation;
use crate::ops::fp8;
use crate::ops::linear::{self, Adapted, InputGrad, Lora, LoraGrad, Then};

pub use bank::{AdapterBank, Adapters, Factor, Layout, Rows, Slot, named};

/// A linear layer that an adapter can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The layer's name in diffusers, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
    /// Whether gradients reach its factors; an adapter that was trained elsewhere may be on any layer.
    pub trainable: bool,
}

/// A frozen linear layer with its place in the list of [`Module`]s.
#[derive(Clone)]
pub struct LoraLinear {
    /// The layer.
    pub base: Linear,
    /// Its number among the model's modules.
    pub index: usize,
}

impl LoraLinear {
    /// `x` `[b, .., in]` to `then(..)` `[b, .., out]`, each row through its adapter where that covers this layer.
    pub fn forward(&self, x: &Tensor, adapters: &Adapters, then: Then) -> Tensor {
        let lora = adapters.of(self.index);
        match &self.base.fp8 {
            Some(weight) => fp8::forward(x, &fp8::quantise(x), self.base.in_fp8(weight, &lora), then),
            None => linear::forward(x, self.adapted(&lora), then),
        }
    }

    /// The same layer with its weight in e4m3, if there are kernels for its shape.
    pub fn quantised(&self) -> Self {
        Self { base: self.base.quantised(), index: self.index }
    }

    /// [`LoraLinear::forward`] of several layers of one input.
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor, adapters: &Adapters) -> [Tensor; N] {
        let lora = layers.map(|l| adapters.of(l.index));
        if let Some(weights) = layers.iter().map(|l| l.base.fp8.as_ref()).collect::<Option<Vec<_>>>() {
            let rows = fp8::quantise(x);
            let of = |i: usize| fp8::forward(x, &rows, layers[i].base.in_fp8(weights[i], &lora[i]), Then::Nothing);
            return std::array::from_fn(of);
        }
        let mut each = lora.iter();
        linear::forward_each(x, layers.map(|l| l.adapted(each.next().expect("one per layer"))))
    }

    /// `(activation(h), h of the first kept rows)`.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        adapters: &Adapters,
        activation: Activation,
        kept: usize,
    ) -> (Tensor, Tensor) {
        assert!(self.base.fp8.is_none(), "fp8 weights have no backward to keep anything for");
        let lora = adapters.of(self.index);
        linear::forward_activated(x, self.adapted(&lora), activation, kept)
    }

    /// Adds the gradients of the factors of `slot` to `grads`, and gives the gradient to the input to `dx`; all rows went
    /// through `slot`.
    pub fn backward(&self, dy: &Tensor, x: Option<&Tensor>, trained: &mut Trained, dx: InputGrad) {
        let factor = trained.bank.factor(trained.slot, self.index);
        let lora = factor.map(|f| Lora { samples: 0..dy.dim(0), a: f.a, b: f.b, scale: trained.bank.scale() });
        let place = trained.bank.layout().place(self.index);
        let grad = place.map(|p| LoraGrad { flat: trained.grads, a: p.a, b: p.b });
        linear::backward(dy, &self.base.weight, x, lora.as_ref(), grad, dx);
    }

    fn adapted<'a>(&'a self, lora: &'a [Lora]) -> Adapted<'a> {
        Adapted { layer: self.base.layer(), lora }
    }
}

/// Which factors a backward is for, and where their gradients are added up.
pub struct Trained<'a> {
    /// The adapters.
    pub bank: &'a AdapterBank,
    /// The trained one.
    pub slot: Slot,
    /// Its gradients, flat, in the bank's layout.
    pub grads: &'a mut Tensor,
}

impl Trained<'_> {
    /// Whether module `index` has factors.
    pub fn covers(&self, index: usize) -> bool {
        self.bank.layout().place(index).is_some()
    }
}

/// Whether PEFT would adapt module `name` for `target`: the whole name, or its end after a dot.
pub(crate) fn matches(name: &str, target: &str) -> bool {
    name == target || name.strip_suffix(target).is_some_and(|head| head.ends_with('.'))
}

/// For each module whether one of `targets` names it.
///
/// # Errors
/// If a target names no module, offering the nearest, or one that cannot be trained.
pub fn select(modules: &[Module], targets: &[String]) -> Result<Vec<bool>> {
    for target in targets {
        let named = || modules.iter().filter(|m| matches(&m.name, target));
        if named().next().is_none() {
            let tails = modules.iter().filter(|m| m.trainable).filter_map(|m| m.name.splitn(3, '.').nth(2));
            bail!("LoRA target '{target}' names no layer of the transformer{}", did_you_mean(target, tails));
        }
        if let Some(module) = named().find(|m| !m.trainable) {
            bail!("LoRA target '{target}' names {}, which an adapter can be on but not trained", module.name);
        }
    }
    Ok(modules.iter().map(|m| targets.iter().any(|t| matches(&m.name, t))).collect())
}
