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
use crate::ops::linear::{self, Adapted, Branch, InputGrad, Lora, Output, Then};
use crate::ops::{fp8, rms_norm};

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

    fn adapted<'a>(&'a self, lora: &'a [Lora]) -> Adapted<'a> {
        Adapted { layer: self.base.layer(), lora }
    }
}

/// A layer and what it is given, of several that do not wait for one another.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The layer.
    pub layer: &'a LoraLinear,
    /// `[b, .., in]`.
    pub x: &'a Tensor,
    /// What follows.
    pub then: Then<'a>,
    /// How many rows, from the first on, a backward is for.
    pub kept: usize,
}

/// [`linear::forward_group`], each row through its adapter where that covers a layer.
pub fn forward_group(calls: &[Call], adapters: &Adapters) -> Vec<Output> {
    let lora: Vec<Vec<Lora>> = calls.iter().map(|c| adapters.of(c.layer.index)).collect();
    if calls.iter().any(|c| c.layer.base.fp8.is_some()) {
        return forward_in_fp8(calls, &lora);
    }
    let calls = calls.iter().zip(&lora).map(|(&Call { layer, x, then, kept }, lora)| linear::Call {
        x,
        layer: layer.adapted(lora),
        then,
        kept,
    });
    linear::forward_group(&calls.collect::<Vec<_>>())
}

/// Layers one after another, those in fp8 that have them; what several of them in a row are given is quantised once.
fn forward_in_fp8(calls: &[Call], lora: &[Vec<Lora>]) -> Vec<Output> {
    let mut quantised: Option<(&Tensor, fp8::Rows)> = None;
    let mut all = Vec::with_capacity(calls.len());
    for (&Call { layer, x, then, kept }, lora) in calls.iter().zip(lora) {
        assert_eq!(kept, 0, "layers in fp8 have no backward to keep anything for");
        let Some(weight) = &layer.base.fp8 else {
            all.extend(linear::forward_group(&[linear::Call { x, layer: layer.adapted(lora), then, kept }]));
            continue;
        };
        if !quantised.as_ref().is_some_and(|(of, _)| std::ptr::eq(*of, x)) {
            quantised = Some((x, fp8::quantise(x)));
        }
        let (_, rows) = quantised.as_ref().expect("just now, if not before");
        let layer = layer.base.in_fp8(weight, lora);
        let y = match then {
            Then::Normalise { weight, eps } => {
                let mut y = fp8::forward(x, rows, layer, Then::Nothing);
                rms_norm::forward_in_place(&mut y, weight, eps, None);
                y
            }
            then => fp8::forward(x, rows, layer, then),
        };
        let mut none = y.shape().to_vec();
        none[0] = 0;
        all.push(Output { hidden: y.scratch_like(&none), inverse_rms: None, y });
    }
    all
}

/// Layers of one input on the way back.
pub struct Backward<'a> {
    /// The input, where factors are trained.
    pub x: Option<&'a Tensor>,
    /// The layers, and the gradients to their outputs.
    pub layers: Vec<(&'a LoraLinear, &'a Tensor)>,
    /// Where the gradient to the input goes.
    pub dx: InputGrad<'a>,
}

/// [`linear::backward_group`]: adds the gradients of the factors of the trained slot, which all rows went through, to the
/// others.
pub fn backward_group(calls: Vec<Backward>, trained: &mut Trained) {
    let Trained { bank, slot, grads } = trained;
    let of = |(layer, dy): &(&LoraLinear, &Tensor)| {
        let factor = bank.factor(*slot, layer.index)?;
        Some(Lora { samples: 0..dy.dim(0), a: factor.a, b: factor.b, scale: bank.scale() })
    };
    let lora: Vec<Vec<Option<Lora>>> = calls.iter().map(|c| c.layers.iter().map(of).collect()).collect();
    let calls = calls.into_iter().zip(&lora).map(|(Backward { x, layers, dx }, lora)| {
        let branches = layers.into_iter().zip(lora).map(|((layer, dy), lora)| Branch {
            dy,
            weight: &layer.base.weight,
            lora: lora.as_ref(),
            grad: bank.layout().place(layer.index).map(|p| [p.a, p.b]),
        });
        linear::Backward { x, branches: branches.collect(), dx }
    });
    linear::backward_group(calls.collect(), Some(grads));
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
