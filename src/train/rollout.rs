//! Prompts to latents, pictures and scores, a batch at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use super::guard::Interrupt;
use super::setup::Setup;
use crate::algorithms::Window;
use crate::data::Prompt;
use crate::data::sampler::Sample;
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::io::image::RgbImage;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::{self, Weights};
use crate::ops::step::{self, Row};
use crate::ops::{copy, noise};
use crate::rewards::{Images, Scores, Scoring};
use crate::rollout::sample::{self, Path, Policy, Visit};
use crate::rollout::sampler::{self, Euler, Sampler, Step};
use crate::telemetry::{Clock, Progress, range};

/// Images that are decoded and scored together; changes memory, not results.
const DECODE_BATCH: usize = 32;

/// How images are sampled.
#[derive(Clone, Copy)]
pub struct Job {
    /// Steps from noise to latent.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub guidance: f32,
    /// What it is for, in words.
    pub what: &'static str,
    /// Whether it is for training, where the network that samples may be another.
    pub trains: bool,
}

/// Which images are sampled, and by whom.
pub struct Order<'a> {
    /// The policy's adapter; `None` is the base.
    pub adapter: Option<(&'a AdapterBank, Slot)>,
    /// One per image.
    pub samples: &'a [Sample],
    /// Each image's prompt.
    pub prompts: &'a [Prompt],
    /// Part of the key of the noise.
    pub epoch: u32,
    /// How.
    pub job: Job,
    /// Whether the pictures are wanted.
    pub keep_pictures: bool,
    /// The steps that add noise and are recorded, for methods that are trained on them.
    pub window: Option<Window>,
}

/// One velocity that the policy had on its way, to be compared with what training makes of the same point.
pub struct Probe {
    /// Where, `[1, channels, h, w]`.
    pub x: Tensor,
    /// The network's time input there.
    pub timestep: f32,
    /// The prompt.
    pub text: String,
    /// The policy's slot.
    pub slot: Option<Slot>,
    /// The velocity, like `x`.
    pub velocity: Tensor,
}

/// Steps of a rollout as they were taken: of each recorded step all images, one step after the other.
pub struct Recorded {
    /// Which steps.
    pub steps: Range<usize>,
    /// The samples before, `[steps·images, channels, h, w]`.
    pub x: Tensor,
    /// The samples after.
    pub next: Tensor,
    /// The steps' means, where they are wanted.
    pub mean: Option<Tensor>,
    /// How probable the samples after were.
    pub log_probs: Vec<f64>,
}

impl Recorded {
    fn new(steps: Range<usize>, wants_mean: bool, like: &Tensor) -> Self {
        let rows = steps.len() * like.dim(0);
        let blank = || Tensor::scratch(&like.device(), &[&[rows], &like.shape()[1..]].concat());
        let mean = wants_mean.then(blank);
        Self { x: blank(), next: blank(), mean, log_probs: vec![0.0; rows], steps }
    }

    /// Takes in a step of the images from `first` on.
    fn take(&mut self, visit: &Visit, step: &Step, first: usize) {
        if !self.steps.contains(&visit.step) {
            return;
        }
        let row = self.row(visit.step, first);
        copy::rows_into(&mut self.x, row, visit.x);
        copy::rows_into(&mut self.next, row, visit.next);
        if let Some(mean) = &mut self.mean {
            copy::rows_into(mean, row, &step::forward(visit.inputs, Row { s: 0.0, ..step.row() }));
        }
        if step.log_prob.is_some() {
            let log_probs = sample::log_probs(visit.x, &visit.guided(), visit.next, step);
            self.log_probs[row..row + log_probs.len()].copy_from_slice(&log_probs);
        }
    }

    /// The same of some of the images.
    fn of(self, images: &[usize]) -> Self {
        let rows: Vec<usize> = self
            .steps
            .clone()
            .flat_map(|step| images.iter().map(move |i| (step, *i)))
            .map(|(s, i)| self.row(s, i))
            .collect();
        let cut = |t: &Tensor| copy::gather(t, &rows);
        Self {
            x: cut(&self.x),
            next: cut(&self.next),
            mean: self.mean.as_ref().map(cut),
            log_probs: rows.iter().map(|row| self.log_probs[*row]).collect(),
            steps: self.steps,
        }
    }

    /// The row of `image` at `step`.
    pub fn row(&self, step: usize, image: usize) -> usize {
        (step - self.steps.start) * (self.x.dim(0) / self.steps.len()) + image
    }
}

/// What was sampled.
pub struct Rollout {
    /// Clean latents, `[images, channels, h, w]`.
    pub x0: Tensor,
    /// What the images are worth.
    pub scores: Scores,
    /// Seconds that each reward took for it.
    pub reward_seconds: BTreeMap<&'static str, f64>,
    /// The pictures, if they were wanted.
    pub pictures: Vec<RgbImage>,
    /// One velocity of the first batch.
    pub probe: Option<Probe>,
    /// The steps that are trained on, where that is wanted.
    pub recorded: Option<Recorded>,
    /// The gradient of the weighted sum of the rewards to each clean latent, in single precision, where that is wanted.
    pub reward_gradient: Option<Tensor>,
}

impl Rollout {
    /// Of `images` alone, in that order, without pictures.
    pub fn of(self, images: &[usize]) -> Self {
        let (x0, scores) = (copy::gather(&self.x0, images), self.scores.of(images));
        let recorded = self.recorded.map(|recorded| recorded.of(images));
        let reward_gradient = self.reward_gradient.as_ref().map(|gradient| copy::gather(gradient, images));
        Self { x0, scores, pictures: Vec::new(), recorded, reward_gradient, ..self }
    }
}

impl Rollout {
    /// The length of each image's gradient of the reward, if there are any.
    pub fn gradient_norms(&self) -> Vec<f64> {
        let Some(gradient) = &self.reward_gradient else { return Vec::new() };
        let elements = (gradient.len() / gradient.dim(0).max(1)) as f64;
        let squares = products::forward(&[products::Difference { terms: vec![(Weights::All(1.0), gradient)] }]);
        squares.iter().map(|p| (p.gram[0][0] * elements).sqrt()).collect()
    }
}

impl Sample {
    /// The stream of a draw for this image.
    pub fn key(&self, seed: u64, purpose: Purpose, epoch: u32, draw: u32) -> Key {
        Key { seed, purpose, epoch, prompt: self.prompt as u32, repeat: self.repeat, step: draw }
    }
}

impl Setup {
    /// Samples, decodes and scores the images of `order`.
    ///
    /// # Errors
    /// [`Interrupted`](super::guard::Interrupted), or what a reward or an encoder reports.
    pub fn rollout(&mut self, order: &Order, clock: &mut Clock, interrupt: &Interrupt) -> Result<Rollout> {
        let Self { config, device, pipeline, sampling, prompts, rewards, sampler, algorithm, .. } = self;
        let network = sampling.as_deref().filter(|_| order.job.trains).unwrap_or(&*pipeline.network);
        let (sizes, count, side) = (pipeline.network.sizes(), order.samples.len(), config.latent);
        let mut x0 = Tensor::scratch(device, &[count, sizes.channels, side, side]);
        let sampler: &dyn Sampler = if order.job.trains { &**sampler } else { &Euler };
        let sigmas = pipeline.schedule.sigmas(order.job.steps, sizes.tokens(side, side))?;
        let steps = match &order.window {
            Some(window) => sampler::windowed(sampler, &sigmas, &window.noisy),
            None => sampler.steps(&sigmas),
        };
        let wants_mean = algorithm.needs().mean_old;
        let mut recorded = order.window.clone().map(|window| Recorded::new(window.trained, wants_mean, &x0));
        let path = Path { steps: &steps, guidance: order.job.guidance, noise: &[] };
        let batches: Vec<Range<usize>> = ranges(0..count, config.raw.rollout.batch_size);
        let texts_of =
            |batch: &Range<usize>| order.prompts[batch.clone()].iter().map(|p| p.text.as_str()).collect::<Vec<_>>();

        // All prompts first: then the encoders can go.
        device.phase("text encoders");
        let negative = {
            let _range = range("encode");
            for batch in device.rehearse(&batches) {
                prompts.prepare(&texts_of(batch))?;
                interrupt.check()?;
            }
            let negative = if path.is_guided() { Some(prompts.encode(&[""])?) } else { None };
            prompts.release();
            negative
        };
        clock.lap("rollout");

        let mut probe = None;
        let mut sample = |batch: &Range<usize>| -> Result<(Sampled, Clock)> {
            let (mut clock, texts) = (Clock::start(), texts_of(batch));
            device.phase(order.job.what);
            let _range = range(order.job.what);
            let embeds = prompts.encode(&texts)?;
            let draw = |s: &Sample| s.key(config.raw.seed, Purpose::InitialLatent, order.epoch, 0);
            let keys: Vec<Key> = order.samples[batch.clone()].iter().map(draw).collect();
            let draws = |s: &Sample| s.key(config.raw.seed, Purpose::SamplerNoise, order.epoch, 0);
            let streams: Vec<Key> = order.samples[batch.clone()].iter().map(draws).collect();
            let path = Path { noise: &streams, ..path };
            let start = noise::normal(device, &keys, &[batch.len(), sizes.channels, side, side]);
            let policy = Policy { network, schedule: &pipeline.schedule, adapter: order.adapter };
            let on_step = |visit: Visit| {
                if let Some(recorded) = &mut recorded {
                    device.lasting(|| recorded.take(&visit, &steps[visit.step], batch.start));
                }
                if probe.is_none() && visit.step == steps.len() / 2 {
                    probe = Some(device.lasting(|| Probe::of(&visit, policy, &steps, &texts)));
                }
                interrupt.check()
            };
            let latents = sample::sample(policy, path, start, &embeds, negative.as_ref(), on_step)?;
            device.check()?;
            sample::check_finite(&latents, |i| texts[i])?;
            copy::rows_into(&mut x0, batch.start, &latents);
            clock.lap("rollout");
            Ok((Sampled { images: batch.clone(), latents }, clock))
        };

        let (mut scoring, mut pictures) = (Scoring::new(rewards), Vec::new());
        let wants_gradient = order.job.trains && algorithm.needs().reward_gradient;
        let mut reward_gradient = wants_gradient.then(|| Tensor::scratch(device, &[count, sizes.channels, side, side]));
        let mut score = |sampled: Sampled| -> Result<Clock> {
            let mut clock = Clock::start();
            let first = sampled.images.start;
            for part in ranges(sampled.images, DECODE_BATCH) {
                device.phase("decode");
                let latents = sampled.latents.slice(part.start - first..part.end - first);
                let images = {
                    let _range = range("decode");
                    Images::decoded(pipeline.vae.decode(&latents))
                };
                clock.lap("decode");
                device.phase("reward");
                let of_image: Vec<&Prompt> = order.prompts[part.clone()].iter().collect();
                let scored = {
                    let _range = range("rewards");
                    scoring.batch(&images, &of_image)
                };
                // Whether the rewards can judge the prompts is asked when a run starts, not when it is planned.
                if !device.is_plan() {
                    scored?;
                }
                if order.keep_pictures {
                    pictures.extend(images.into_pictures());
                }
                clock.lap("reward");
                if let Some(all) = &mut reward_gradient {
                    device.phase("reward gradient");
                    let _range = range("reward gradient");
                    let of_pictures =
                        |range: Range<usize>, pictures: &Tensor| rewards.gradient(pictures, &of_image[range]);
                    copy::rows_into(all, part.start, &pipeline.vae.gradient(&latents, of_pictures)?);
                    clock.lap("reward gradient");
                }
            }
            Ok(clock)
        };

        // A batch is decoded and scored beside the sampling of the next.
        let progress = Progress::new(order.job.what, count as u64);
        let mut waiting: Option<Sampled> = None;
        for batch in device.rehearse(&batches).map(Some).chain([None]) {
            let sampled = waiting.take();
            let images = sampled.as_ref().map_or(0, |s| s.images.len());
            let (scored, next) =
                device.beside(|| sampled.map(&mut score).transpose(), || batch.map(&mut sample).transpose());
            let (scored, next) = (scored?, next?);
            let (next, sampling) = next.map_or((None, None), |(next, clock)| (Some(next), Some(clock)));
            waiting = next;
            clock.add([scored, sampling]);
            progress.step(images as u64);
            interrupt.check()?;
        }
        progress.finish();
        let reward_seconds = scoring.seconds();
        Ok(Rollout { x0, scores: scoring.finish(count), reward_seconds, pictures, probe, recorded, reward_gradient })
    }
}

/// Latents that are not decoded yet.
struct Sampled {
    images: Range<usize>,
    latents: Tensor,
}

impl Probe {
    /// The last sample of a batch at one of its steps.
    fn of(visit: &Visit, policy: Policy, steps: &[crate::rollout::sampler::Step], texts: &[&str]) -> Self {
        let last = visit.x.dim(0) - 1;
        let row = |t: &Tensor| copy::owned(&t.slice(last..last + 1));
        Self {
            x: row(visit.x),
            timestep: policy.schedule.timestep(steps[visit.step].sigma),
            text: texts[last].to_string(),
            slot: policy.adapter.map(|(_, slot)| slot),
            velocity: row(&visit.velocity),
        }
    }
}

/// `whole` in pieces of `length`.
fn ranges(whole: Range<usize>, length: usize) -> Vec<Range<usize>> {
    whole.clone().step_by(length).map(|first| first..(first + length).min(whole.end)).collect()
}
