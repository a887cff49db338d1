//! The passes of a network that rollouts and updates are made of, with inputs that mean nothing: to be counted on a plan, or
//! timed.

use std::sync::Arc;

use anyhow::Result;

use crate::config::raw::Lora;
use crate::device::philox::{Key, Purpose};
use crate::device::{DType, Tensor};
use crate::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, Trained, select};
use crate::models::network::{Checkpointing, Condition, Network};
use crate::ops::{copy, noise};

/// A network with adapters.
pub struct Passes {
    network: Box<dyn Network>,
    bank: AdapterBank,
}

/// What goes into a pass.
pub struct Inputs {
    x: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
}

impl Passes {
    /// `network` with a fresh adapter as `lora` says, and copies of it that the policies `others` go through.
    ///
    /// # Errors
    /// If a target of `lora` names no module.
    pub fn new(network: Box<dyn Network>, lora: &Lora, others: &[Option<Slot>]) -> Result<Self> {
        let modules = network.modules();
        let layout = Layout::selected(modules, &select(modules, &lora.targets)?, lora.rank);
        let theta = AdapterBank::initial(&layout, modules, 0, network.device());
        let mut bank = AdapterBank::new(Arc::new(layout), lora.alpha / lora.rank as f32);
        bank.set(Slot::Theta, theta);
        for slot in others.iter().flatten() {
            bank.copy(*slot, Slot::Theta);
        }
        Ok(Self { network, bank })
    }

    /// Latents of `side` by `side` for `rows` samples with `text` tokens each.
    pub fn inputs(&self, rows: usize, side: usize, text: usize) -> Inputs {
        let (device, sizes) = (self.network.device(), self.network.sizes());
        let random = |width: &[usize]| {
            let keys: Vec<Key> =
                (0..rows).map(|row| Key { prompt: row as u32, ..Key::new(0, Purpose::ForwardNoise) }).collect();
            noise::normal(device, &keys, &[&[rows], width].concat())
        };
        let half = |t: Tensor| copy::cast(&t, DType::Bf16);
        Inputs {
            x: random(&[sizes.channels, side, side]),
            prompt_embeds: half(random(&[text, sizes.text])),
            pooled: half(random(&[sizes.pooled])),
        }
    }

    /// A forward of a rollout, through the adapter.
    pub fn forward(&self, inputs: &Inputs) -> Tensor {
        let rows = Rows::all(Some(Slot::Theta), inputs.x.dim(0));
        let adapters = Adapters { bank: Some(&self.bank), rows: &rows };
        let timestep = vec![500.0; rows.count()];
        self.network.device().region(|| self.network.forward(&inputs.x, inputs.condition(&timestep), &adapters))
    }

    /// A forward and backward of an update: `policies`, of which the first is trained, share the rows of `inputs`.
    pub fn training(&self, inputs: &Inputs, policies: &[Option<Slot>], keep: Checkpointing) -> Tensor {
        let each = inputs.x.dim(0) / policies.len();
        let rows = Rows::runs(policies.iter().map(|slot| (*slot, each)));
        let adapters = Adapters { bank: Some(&self.bank), rows: &rows };
        let timestep = vec![500.0; rows.count()];
        let mut grads = Tensor::zeros(self.network.device(), &[self.bank.layout().len()]);
        self.network.device().region(|| {
            let condition = inputs.condition(&timestep);
            let (velocity, saved) = self.network.forward_saved(&inputs.x, condition, &adapters, keep);
            let mut trained = Trained { bank: &self.bank, slot: Slot::Theta, grads: &mut grads };
            self.network.backward(&velocity.slice(0..each), saved, &mut trained, false);
        });
        grads
    }
}

impl Inputs {
    fn condition<'a>(&'a self, timestep: &'a [f32]) -> Condition<'a> {
        Condition { timestep, prompt_embeds: &self.prompt_embeds, pooled_prompt_embeds: &self.pooled }
    }
}
