//! The phases of an epoch: rollout, decode, reward, update; and evaluation.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::guard::Interrupt;
use super::setup::Setup;
use super::state::State;
use super::update::{Policies, accumulate};
use super::{optimizer, update};
use crate::algorithms::advantage::{Advantages, group_centered};
use crate::algorithms::{Algorithm, Points};
use crate::config::memory::DECODE_BATCH;
use crate::data::Prompt;
use crate::data::sampler::{Sample, groups};
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::io::image::to_u8;
use crate::models::lora::Adapter;
use crate::rewards::{RgbImage, Scores};
use crate::rollout::sampler::Sampler;
use crate::telemetry::Progress;

/// Random numbers of epoch `e` are keyed by `e + 1`; 0 is for evaluation, whose images are the same at every epoch.
const EVAL_EPOCH: u32 = 0;

/// What happened in an epoch.
pub struct EpochReport {
    /// Rewards of all images.
    pub scores: Scores,
    /// Their advantages.
    pub advantages: Advantages,
    /// The training loss.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The tensor that was not finite, if the step was skipped for it.
    pub skipped: Option<String>,
    /// Seconds per phase.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// Rewards on held-out prompts, and their images.
pub struct EvalReport {
    /// Rewards of all images.
    pub scores: Scores,
    /// The images, prompt by prompt.
    pub images: Vec<RgbImage>,
}

/// How latents are sampled.
struct SamplerSettings<'a> {
    adapter: &'a Adapter,
    epoch: u32,
    steps: usize,
    guidance: f32,
    batch: usize,
}

impl Setup {
    /// One epoch of training. `state` is changed only when everything has succeeded.
    ///
    /// # Errors
    /// [`Interrupted`](super::guard::Interrupted), or what a reward or an encoder reports.
    pub fn train_epoch(&mut self, state: &mut State, interrupt: &Interrupt) -> Result<EpochReport> {
        let (raw, epoch) = (self.config.raw.clone(), state.epoch);
        let mut seconds = BTreeMap::new();
        let mut clock = Instant::now();
        let mut lap = |name| {
            seconds.insert(name, clock.elapsed().as_secs_f64());
            clock = Instant::now();
        };

        let (prompts, repeats) = (raw.rollout.num_prompts_per_epoch, raw.rollout.num_images_per_prompt);
        let samples = groups(self.train.prompts.len(), prompts, repeats, raw.seed, epoch);
        let settings = SamplerSettings {
            adapter: &state.old,
            epoch: epoch + 1,
            steps: raw.rollout.num_inference_steps,
            guidance: raw.rollout.guidance_scale,
            batch: raw.rollout.batch_size,
        };
        let texts: Vec<String> = samples.iter().map(|s| self.train.prompts[s.prompt].text.clone()).collect();
        let x0 = self.sample(&samples, &texts, &settings, "rollout", interrupt)?;
        lap("rollout");
        let images = self.decode(&x0, interrupt)?;
        lap("decode");
        let of_image: Vec<&Prompt> = samples.iter().map(|s| &self.train.prompts[s.prompt]).collect();
        let scores = self.rewards.score(&images, &of_image)?;
        // By text: prompts that a set holds twice are one group.
        let advantages = group_centered(&scores.avg, &texts, raw.ram.advantage_eps);
        lap("reward");

        let mut grads = state.theta.zeros_like();
        let loss = self.gradient(state, &samples, &texts, &x0, &advantages.values, &mut grads, interrupt)?;
        let names = grads.names(self.pipeline.transformer.modules());
        let skipped = match optimizer::first_non_finite(&grads, &names) {
            Some(tensor) => Some(tensor),
            None => (!loss.is_finite()).then(|| format!("the loss is {loss}")),
        };
        let grad_norm = match raw.optimizer.max_grad_norm {
            0.0 => optimizer::grad_norm(&grads),
            max => optimizer::clip_grad_norm(&mut grads, max),
        };
        if skipped.is_none() {
            state.step(&self.optimizer, &grads, &raw);
        }
        state.epoch += 1;
        lap("update");
        Ok(EpochReport { scores, advantages, loss, grad_norm, skipped, seconds })
    }

    /// Samples and scores the held-out prompts with `adapter`, from the same noise every time.
    ///
    /// # Errors
    /// As [`Setup::train_epoch`].
    pub fn evaluate(&mut self, adapter: &Adapter, interrupt: &Interrupt) -> Result<EvalReport> {
        let eval = self.config.raw.eval.clone();
        let prompts = if eval.num_prompts == 0 { self.eval.prompts.len() } else { eval.num_prompts };
        let samples: Vec<Sample> = (0..prompts)
            .flat_map(|prompt| (0..eval.num_images_per_prompt as u32).map(move |repeat| Sample { prompt, repeat }))
            .collect();
        let settings = SamplerSettings {
            adapter,
            epoch: EVAL_EPOCH,
            steps: eval.num_inference_steps,
            guidance: eval.guidance_scale,
            batch: self.config.raw.rollout.batch_size,
        };
        let texts: Vec<String> = samples.iter().map(|s| self.eval.prompts[s.prompt].text.clone()).collect();
        let latents = self.sample(&samples, &texts, &settings, "evaluation", interrupt)?;
        let images = self.decode(&latents, interrupt)?;
        let of_image: Vec<&Prompt> = samples.iter().map(|s| &self.eval.prompts[s.prompt]).collect();
        Ok(EvalReport { scores: self.rewards.score(&images, &of_image)?, images })
    }

    /// Latents `[samples, channels, h, w]`; `texts` are the samples' prompts.
    fn sample(
        &mut self,
        samples: &[Sample],
        texts: &[String],
        settings: &SamplerSettings,
        what: &'static str,
        interrupt: &Interrupt,
    ) -> Result<Tensor> {
        let (config, model) = (&self.config, &self.pipeline.transformer);
        let shape = [1, model.config.in_channels, config.latent, config.latent];
        let sampler = Sampler {
            model,
            adapter: Some(settings.adapter),
            schedule: &self.pipeline.schedule,
            steps: settings.steps,
            guidance: settings.guidance,
        };
        let negative = if sampler.is_guided() { Some(self.prompts.encode(&[""])?) } else { None };
        let progress = Progress::new(what, samples.len() as u64);
        let mut latents = Vec::new();
        for (batch, texts) in samples.chunks(settings.batch).zip(texts.chunks(settings.batch)) {
            let mut noise = Tensor::scratch(&[batch.len(), shape[1], shape[2], shape[3]]);
            let per: usize = shape.iter().product();
            for (s, noise) in batch.iter().zip(noise.data_mut().chunks_exact_mut(per)) {
                self.config.key(Purpose::InitialLatent, settings.epoch, s, 0).normal(noise);
            }
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let embeds = self.prompts.encode(&texts)?;
            latents.push(sampler.euler(noise, &embeds, negative.as_ref(), || interrupt.check())?);
            progress.step(batch.len() as u64);
        }
        progress.finish();
        Ok(Tensor::concat(&latents.iter().collect::<Vec<_>>()))
    }

    /// Latents to 8-bit images.
    fn decode(&self, latents: &Tensor, interrupt: &Interrupt) -> Result<Vec<RgbImage>> {
        let mut images = Vec::with_capacity(latents.dim(0));
        let progress = Progress::new("decode", latents.dim(0) as u64);
        for first in (0..latents.dim(0)).step_by(DECODE_BATCH) {
            let last = (first + DECODE_BATCH).min(latents.dim(0));
            let decoded = self.pipeline.decode(&latents.slice(first..last));
            images.extend((0..last - first).map(|i| to_u8(&decoded.slice(i..i + 1))));
            progress.step((last - first) as u64);
            interrupt.check()?;
        }
        progress.finish();
        Ok(images)
    }

    /// The loss over all training points of the epoch, and its gradient.
    #[expect(clippy::too_many_arguments, reason = "what an epoch has produced so far")]
    fn gradient(
        &mut self,
        state: &State,
        samples: &[Sample],
        texts: &[String],
        x0: &Tensor,
        advantages: &[f32],
        grads: &mut Adapter,
        interrupt: &Interrupt,
    ) -> Result<f64> {
        let (noisings, batch) = (self.config.raw.ram.num_noisings, self.config.raw.train.batch_size);
        let points: Vec<(usize, u32)> =
            (0..samples.len()).flat_map(|image| (0..noisings as u32).map(move |k| (image, k))).collect();
        let per = x0.len() / x0.dim(0);
        let mut loss = 0.0;
        let progress = Progress::new("update", points.len() as u64);
        for chunk in points.chunks(batch) {
            let images: Vec<usize> = chunk.iter().map(|(image, _)| *image).collect();
            let clean = x0.gather(&images);
            let mut noise = Tensor::scratch(clean.shape());
            let mut t = Vec::with_capacity(chunk.len());
            for ((image, k), noise) in chunk.iter().zip(noise.data_mut().chunks_exact_mut(per)) {
                let key = |purpose| self.config.key(purpose, state.epoch + 1, &samples[*image], *k);
                key(Purpose::ForwardNoise).normal(noise);
                t.push(self.algorithm.time(&mut key(Purpose::Timestep).stream()));
            }
            let advantage: Vec<f32> = images.iter().map(|i| advantages[*i]).collect();
            let prompts: Vec<&str> = images.iter().map(|i| texts[*i].as_str()).collect();
            let embeds = self.prompts.encode(&prompts)?;
            let policies = Policies {
                model: &self.pipeline.transformer,
                schedule: &self.pipeline.schedule,
                theta: &state.theta,
                old: &state.old,
                checkpointing: self.config.raw.train.activation_checkpointing,
            };
            let made = Points { x0: &clean, noise: &noise, t: &t, advantage: &advantage };
            let update::Step { loss: share, .. } =
                accumulate(policies, &self.algorithm, &made, &embeds, points.len(), grads);
            loss += share;
            progress.step(chunk.len() as u64);
            interrupt.check()?;
        }
        progress.finish();
        Ok(loss)
    }
}

impl crate::config::Resolved {
    /// The key of a draw for one image of an epoch.
    fn key(&self, purpose: Purpose, epoch: u32, sample: &Sample, step: u32) -> Key {
        Key { seed: self.raw.seed, purpose, epoch, prompt: sample.prompt as u32, repeat: sample.repeat, step }
    }
}
