//! Low-rank adapters on one frozen base (LoRA, Hu et al. 2021): the trained policy, its lagged copy and the
//! reference are the same weights with one adapter, another, or none.

use anyhow::{Result, bail};

use super::Linear;
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::io::did_you_mean;
use crate::ops::linear::{InputGrad, LoraGrad, LoraRef, backward, forward};

/// A linear layer that an adapter can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The layer's name in diffusers, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Input width.
    pub inputs: usize,
    /// Output width.
    pub outputs: usize,
}

/// A frozen linear layer with its place in the list of [`Module`]s.
pub struct LoraLinear {
    /// The layer.
    pub base: Linear,
    /// Its number among the model's modules.
    pub index: usize,
}

impl LoraLinear {
    /// `x` `[.., in]` to `[.., out]`, through `adapter` where it covers this layer.
    pub fn forward(&self, x: &Tensor, adapter: Option<&Adapter>) -> Tensor {
        forward(x, &self.base.weight, self.base.bias.as_ref(), adapter.and_then(|a| a.factor(self.index)))
    }

    /// Adds the gradients of the factors to `grads`, and gives the gradient to the input to `dx`.
    pub fn backward(&self, dy: &Tensor, x: Option<&Tensor>, adapter: &Adapter, grads: &mut Adapter, dx: InputGrad) {
        let lora = adapter.factor(self.index);
        let grad = grads.factors[self.index].as_mut().map(|f| LoraGrad { a: &mut f.a, b: &mut f.b });
        backward(dy, &self.base.weight, x, lora, grad, dx);
    }

    /// Whether `adapter` has factors for this layer.
    pub fn is_adapted(&self, adapter: Option<&Adapter>) -> bool {
        adapter.is_some_and(|a| a.factors[self.index].is_some())
    }
}

/// `A` `[rank, in]` and `B` `[out, rank]` of one layer.
#[derive(Clone)]
pub struct Factor {
    /// `A`, `[rank, in]`.
    pub a: Tensor,
    /// `B`, `[out, rank]`.
    pub b: Tensor,
}

/// The numbers of the modules that an adapter covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraPlacement(pub Vec<usize>);

/// One adapter: for each module of the model, its factors or nothing.
#[derive(Clone)]
pub struct Adapter {
    /// `s = alpha / rank`.
    pub scale: f32,
    factors: Vec<Option<Factor>>,
}

/// Whether PEFT would adapt module `name` for `target`: the whole name, or its end after a dot.
pub(crate) fn matches(name: &str, target: &str) -> bool {
    name == target || name.strip_suffix(target).is_some_and(|head| head.ends_with('.'))
}

/// For each module whether one of `targets` names it.
///
/// # Errors
/// If a target names no module; offers the nearest.
pub fn select(modules: &[Module], targets: &[String]) -> Result<Vec<bool>> {
    for target in targets {
        if !modules.iter().any(|m| matches(&m.name, target)) {
            let tails = modules.iter().filter_map(|m| m.name.splitn(3, '.').nth(2));
            bail!("LoRA target '{target}' names no layer of the transformer{}", did_you_mean(target, tails));
        }
    }
    Ok(modules.iter().map(|m| targets.iter().any(|t| matches(&m.name, t))).collect())
}

impl Adapter {
    /// A new adapter on the modules that `selected` marks: `A` normal with standard deviation `1/rank`, `B` zero
    /// (PEFT's `init_lora_weights="gaussian"`), so that it changes nothing yet.
    pub fn init(modules: &[Module], selected: &[bool], rank: usize, alpha: f32, seed: u64) -> Self {
        let factors = modules.iter().zip(selected).enumerate().map(|(i, (m, selected))| {
            selected.then(|| {
                let mut a = Tensor::scratch(&[rank, m.inputs]);
                Key { prompt: i as u32, ..Key::new(seed, Purpose::LoraInit) }.normal(a.data_mut());
                a.data_mut().iter_mut().for_each(|v| *v /= rank as f32);
                Factor { a, b: Tensor::zeros(&[m.outputs, rank]) }
            })
        });
        Self { scale: alpha / rank as f32, factors: factors.collect() }
    }

    /// An adapter from given factors, one entry per module.
    pub fn from_factors(scale: f32, factors: Vec<Option<Factor>>) -> Self {
        Self { scale, factors }
    }

    /// An adapter of the same shape with all factors zero; holds gradients and moments.
    pub fn zeros_like(&self) -> Self {
        let mut out = self.clone();
        out.tensors_mut().for_each(|t| t.data_mut().fill(0.0));
        out
    }

    /// The factors of module `index`, ready for the op.
    pub fn factor(&self, index: usize) -> Option<LoraRef<'_>> {
        self.factors[index].as_ref().map(|f| LoraRef { a: &f.a, b: &f.b, scale: self.scale })
    }

    /// The adapted modules' numbers and factors, in module order.
    pub fn factors(&self) -> impl Iterator<Item = (usize, &Factor)> {
        self.factors.iter().enumerate().filter_map(|(i, f)| f.as_ref().map(|f| (i, f)))
    }

    /// Which modules have factors.
    pub fn placement(&self) -> LoraPlacement {
        LoraPlacement(self.factors().map(|(i, _)| i).collect())
    }

    /// All factors, `A` before `B`, in module order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.factors.iter().flatten().flat_map(|f| [&f.a, &f.b])
    }

    /// All factors for writing, in the order of [`Adapter::tensors`].
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.factors.iter_mut().flatten().flat_map(|f| [&mut f.a, &mut f.b])
    }

    /// Names of all factors as the parameters are called in diffusers, in the order of [`Adapter::tensors`].
    pub fn names(&self, modules: &[Module]) -> Vec<String> {
        self.factors().flat_map(|(i, _)| ["A", "B"].map(|f| format!("{}.lora_{f}.weight", modules[i].name))).collect()
    }

    /// `self ← decay·self + (1 − decay)·other`; `decay = 0` copies bit for bit.
    pub fn lerp(&mut self, other: &Self, decay: f32) {
        for (mine, theirs) in self.tensors_mut().zip(other.tensors()) {
            if decay == 0.0 {
                mine.data_mut().copy_from_slice(theirs.data());
            } else {
                for (m, t) in mine.data_mut().iter_mut().zip(theirs.data()) {
                    *m = decay * *m + (1.0 - decay) * t;
                }
            }
        }
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.tensors().map(Tensor::len).sum()
    }
}
