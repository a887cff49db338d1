//! Latents to pictures and scores, and where a method follows it, the gradient of the reward.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use super::guard::Interrupt;
use super::rollout::Order;
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::autoencoder::Autoencoder;
use crate::ops::copy;
use crate::rewards::{Images, Scores, Scoring, WeightedSum};
use crate::telemetry::{Clock, Progress, range};

/// Images that are decoded and scored together; changes memory, not results.
const DECODE_BATCH: usize = 32;

/// Latents that are not decoded yet.
pub struct Sampled {
    /// Their numbers.
    pub images: Range<usize>,
    /// `[images, channels, h, w]`.
    pub latents: Tensor,
}

/// Decodes and scores the images of an order, batch by batch.
pub struct Judge<'a> {
    device: &'a Device,
    vae: &'a Autoencoder,
    rewards: &'a WeightedSum,
    order: &'a Order<'a>,
    scoring: Scoring<'a>,
    pictures: Vec<RgbImage>,
    /// Of all images, where it is wanted.
    gradient: Option<Tensor>,
}

/// What the images of an order are worth.
pub struct Worth {
    /// Their scores.
    pub scores: Scores,
    /// Seconds that each reward took.
    pub seconds: BTreeMap<&'static str, f64>,
    /// The pictures, if they were wanted.
    pub pictures: Vec<RgbImage>,
    /// The gradient of the reward to the latents, if it was wanted: `[images, channels, h, w]`.
    pub gradient: Option<Tensor>,
}

impl<'a> Judge<'a> {
    /// Before the first batch; `gradient` has room for the gradients of all images, where they are wanted.
    pub fn new(
        device: &'a Device,
        vae: &'a Autoencoder,
        rewards: &'a WeightedSum,
        order: &'a Order<'a>,
        gradient: Option<Tensor>,
    ) -> Self {
        let scoring = Scoring::new(rewards);
        Self { device, vae, rewards, order, scoring, pictures: Vec::new(), gradient }
    }

    /// Decodes and scores a batch; says how long each phase took.
    ///
    /// # Errors
    /// What a reward reports.
    pub fn take(&mut self, sampled: Sampled) -> Result<Clock> {
        let mut clock = Clock::start();
        let first = sampled.images.start;
        for part in ranges(sampled.images, DECODE_BATCH) {
            self.device.phase("decode");
            let latents = sampled.latents.slice(part.start - first..part.end - first);
            let images = {
                let _range = range("decode");
                Images::decoded(self.vae.decode(&latents))
            };
            clock.lap("decode");
            self.device.phase("reward");
            let prompts = self.order.prompts(part.clone());
            let scored = {
                let _range = range("rewards");
                self.scoring.batch(&images, &prompts)
            };
            // Whether the rewards can judge the prompts is asked when a run starts, not when it is planned.
            if !self.device.is_plan() {
                scored?;
            }
            if self.order.keep_pictures {
                self.pictures.extend(images.into_pictures());
            }
            clock.lap("reward");
            if let Some(mut all) = self.gradient.take() {
                copy::rows_into(&mut all, part.start, &self.gradient_at(&latents, &prompts)?);
                self.gradient = Some(all);
                clock.lap("reward gradient");
            }
        }
        Ok(clock)
    }

    /// The gradients of the reward to `latents` that are to be decoded to pictures for `prompts`.
    fn gradient_at(&self, latents: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        self.device.phase("reward gradient");
        let _range = range("reward gradient");
        let of_pictures = |range: Range<usize>, pictures: &Tensor| self.rewards.gradient(pictures, &prompts[range]);
        self.vae.gradient(latents, of_pictures)
    }

    /// Puts the gradients of the reward to clean latents in the place of these: of all images, as often as there are.
    ///
    /// # Errors
    /// [`Interrupted`](super::guard::Interrupted), or what a reward reports.
    pub fn to_gradients(&self, clean: &mut Tensor, interrupt: &Interrupt) -> Result<()> {
        let count = self.order.count();
        let parts = (0..clean.dim(0))
            .step_by(count)
            .flat_map(|first| ranges(0..count, DECODE_BATCH).into_iter().map(move |images| (first, images)));
        let parts: Vec<(usize, Range<usize>)> = parts.collect();
        let progress = Progress::new("reward gradient", clean.dim(0) as u64);
        for (first, images) in self.device.rehearse(&parts) {
            let start = first + images.start;
            let prompts = self.order.prompts(images.clone());
            let found = self.gradient_at(&clean.slice(start..start + images.len()), &prompts)?;
            copy::rows_into(clean, start, &found);
            progress.step(images.len() as u64);
            interrupt.check()?;
        }
        progress.finish();
        Ok(())
    }

    /// What came of all images; the scores of those that a plan left out are zero.
    pub fn finish(self) -> Worth {
        let seconds = self.scoring.seconds();
        let scores = self.scoring.finish(self.order.count());
        Worth { scores, seconds, pictures: self.pictures, gradient: self.gradient }
    }
}

/// `whole` in pieces of `length`.
pub fn ranges(whole: Range<usize>, length: usize) -> Vec<Range<usize>> {
    whole.clone().step_by(length).map(|first| first..(first + length).min(whole.end)).collect()
}
