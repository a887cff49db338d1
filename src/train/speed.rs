//! How fast a run is: images, FLOPs of the model, and what share they are of what this machine can do.

use std::time::Duration;

use anyhow::Result;

use super::plan::MemoryPlan;
use super::setup::{Planned, Setup};
use crate::bench::peak::{self, Peak};
use crate::device::{Device, process_peak};
use crate::models::network::Checkpointing;
use crate::predict::model_flops;
use crate::telemetry::si;

/// How long the peak is measured for when a run starts.
const MEASURED: Duration = Duration::from_millis(100);

/// What the seconds of an epoch are held against.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// FLOPs of the model in an epoch: those of the matrix products of the transformer's forwards and backwards in rollout
    /// and update, two per multiply-add. What is computed a second time to save memory, text encoders, VAE and rewards are
    /// not counted.
    pub flops: u64,
    /// What large matrix products reach on this device, in the type that the transformer's are in; unknown where the device is
    /// interpreted.
    pub peak: Option<Peak>,
}

impl Speed {
    /// Counts an epoch of `planned` on `device`; the peak is not known yet.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn of(planned: &Planned, device: &Device) -> Result<Self> {
        let mut planned = planned.clone();
        planned.config.raw.train.activation_checkpointing = Checkpointing::None;
        Ok(Self { flops: model_flops(&MemoryPlan::of(&planned, device)?.epoch), peak: None })
    }

    /// The same with the peak of `setup`'s device, measured now.
    pub fn measured(self, setup: &Setup) -> Self {
        let dtype = setup.pipeline.network.multiplies_in();
        Self { peak: peak::products(&setup.device, dtype, MEASURED), ..self }
    }

    /// What is known before an epoch has been timed.
    pub fn describe(&self) -> String {
        let epoch = format!("an epoch takes {}FLOP of the model", si(self.flops as f64));
        match self.peak {
            Some(Peak { rate, dtype }) => {
                format!("{epoch}; MFU is by {}FLOP/s, which products in {dtype} reach here", si(rate))
            }
            None => epoch,
        }
    }

    /// FLOP/s of the model in an epoch of so many seconds, whatever they went to.
    pub fn rate(&self, seconds: f64) -> f64 {
        self.flops as f64 / seconds
    }

    /// Model FLOPs utilisation (Chowdhery et al. 2022, appendix B): the [rate](Self::rate) by the measured peak.
    pub fn utilisation(&self, seconds: f64) -> Option<f64> {
        self.peak.map(|peak| self.rate(seconds) / peak.rate)
    }
}

/// The most memory that a run on `device` had at once: of a GPU its tensors, else all that the process had.
pub fn peak_memory(device: &Device) -> u64 {
    let process = if let Device::Gpu(_) = device { None } else { process_peak() };
    process.unwrap_or_else(|| device.peak())
}
