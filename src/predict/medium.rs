//! The passes of Stable Diffusion 3.5 Medium that predictions are made of.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use crate::config::raw::Lora;
use crate::device::gpu::Chip;
use crate::device::work::Works;
use crate::device::{DType, Device, Tensor};
use crate::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, Trained, select};
use crate::models::network::{Checkpointing, Condition, Network};
use crate::models::source::{Model, Source};
use crate::models::{load_network, outline};

/// The transformer with adapters of rank 32 on the projections that training adapts by default, on a chip that is not there.
pub struct Medium {
    device: Device,
    network: Box<dyn Network>,
    bank: AdapterBank,
}

impl Medium {
    /// On `chip`.
    ///
    /// # Errors
    /// If there are no kernels for it.
    pub fn on(chip: &Chip) -> Result<Self> {
        const RANK: usize = 32;
        let device = Device::planned(chip)?;
        let model = Model::open(&Source { model: PathBuf::from(outline::SD35_MEDIUM), ..Source::default() })?;
        let network = load_network(model.component("transformer")?, &device, None)?;
        let modules = network.modules();
        let layout = Layout::selected(modules, &select(modules, &Lora::default().targets)?, RANK);
        let theta = AdapterBank::initial(&layout, modules, 0, &device);
        let mut bank = AdapterBank::new(Arc::new(layout), 2.0);
        bank.set(Slot::Theta, theta);
        Ok(Self { device, network, bank })
    }

    /// Latents, prompt embeddings and pooled ones of `rows` samples with latents of `side` and `text` tokens.
    fn inputs(&self, rows: usize, side: usize, text: usize) -> [Tensor; 3] {
        let sizes = self.network.sizes();
        let half = |shape: &[usize]| Tensor::scratch_of(&self.device, DType::Bf16, shape);
        let x = Tensor::scratch(&self.device, &[rows, sizes.channels, side, side]);
        [x, half(&[rows, text, sizes.text]), half(&[rows, sizes.pooled])]
    }

    /// A forward of a rollout, through the adapter.
    pub fn forward(&self, rows: usize, side: usize, text: usize) -> Works {
        let [x, prompt_embeds, pooled_prompt_embeds] = &self.inputs(rows, side, text);
        let condition = Condition { timestep: &vec![500.0; rows], prompt_embeds, pooled_prompt_embeds };
        let rows = Rows::all(Some(Slot::Theta), rows);
        let adapters = Adapters { bank: Some(&self.bank), rows: &rows };
        self.device.take_work();
        self.device.region(|| self.network.forward(x, condition, &adapters));
        self.device.take_work()
    }

    /// A forward and backward of rows that are all trained.
    pub fn training(&self, rows: usize, side: usize, text: usize, keep: Checkpointing) -> Works {
        let [x, prompt_embeds, pooled_prompt_embeds] = &self.inputs(rows, side, text);
        let condition = Condition { timestep: &vec![500.0; rows], prompt_embeds, pooled_prompt_embeds };
        let rows = Rows::all(Some(Slot::Theta), rows);
        let adapters = Adapters { bank: Some(&self.bank), rows: &rows };
        let mut grads = Tensor::zeros(&self.device, &[self.bank.layout().len()]);
        self.device.take_work();
        self.device.region(|| {
            let (velocity, saved) = self.network.forward_saved(x, condition, &adapters, keep);
            let mut trained = Trained { bank: &self.bank, slot: Slot::Theta, grads: &mut grads };
            self.network.backward(&velocity, saved, &mut trained, false);
        });
        self.device.take_work()
    }
}
