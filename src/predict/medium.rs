//! The passes of Stable Diffusion 3.5 Medium that predictions are made of.

use std::path::PathBuf;

use anyhow::Result;

use crate::bench::passes::Passes;
use crate::config::raw::Lora;
use crate::device::Device;
use crate::device::gpu::Chip;
use crate::device::work::Works;
use crate::models::lora::Slot;
use crate::models::network::Checkpointing;
use crate::models::source::{Model, Source};
use crate::models::{load_network, outline};

/// The transformer with adapters of rank 32 on the projections that training adapts by default, on a chip that is not there.
pub struct Medium {
    device: Device,
    passes: Passes,
}

impl Medium {
    /// On `chip`.
    ///
    /// # Errors
    /// If there are no kernels for it.
    pub fn on(chip: &Chip) -> Result<Self> {
        let device = Device::planned(chip)?;
        let model = Model::open(&Source { model: PathBuf::from(outline::SD35_MEDIUM), ..Source::default() })?;
        let network = load_network(model.component("transformer")?, &device, None)?;
        let lora = Lora { rank: 32, alpha: 64.0, ..Lora::default() };
        let passes = Passes::new(network, &lora, &[])?;
        Ok(Self { device, passes })
    }

    /// A forward of a rollout, through the adapter.
    pub fn forward(&self, rows: usize, side: usize, text: usize) -> Works {
        let inputs = self.passes.inputs(rows, side, text);
        self.device.take_work();
        self.passes.forward(&inputs);
        self.device.take_work()
    }

    /// A forward and backward of rows that are all trained.
    pub fn training(&self, rows: usize, side: usize, text: usize, keep: Checkpointing) -> Works {
        let inputs = self.passes.inputs(rows, side, text);
        self.device.take_work();
        self.passes.training(&inputs, &[Some(Slot::Theta)], keep);
        self.device.take_work()
    }
}
