//! Prompts to latents, pictures and scores, a batch at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use super::guard::Interrupt;
use super::judge::{Judge, Sampled, Worth, ranges};
use super::recorded::Recorded;
use super::setup::Setup;
use crate::algorithms::Window;
use crate::config::method::GradientAt;
use crate::data::Prompt;
use crate::data::sampler::Sample;
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::io::image::RgbImage;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::{self, Weights};
use crate::ops::{copy, noise};
use crate::rewards::Scores;
use crate::rollout::branch::{Fork, stages};
use crate::rollout::sample::{self, Path, Policy, Visit};
use crate::rollout::sampler::{self, Euler, Sampler, Step};
use crate::telemetry::{Clock, Progress, range};

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
    /// The samples: one per image, unless images are forks of them.
    pub samples: &'a [Sample],
    /// Each sample's prompt.
    pub prompts: &'a [Prompt],
    /// The images, if they are forks of samples, by step.
    pub forks: &'a [Fork],
    /// Part of the key of the noise.
    pub epoch: u32,
    /// How.
    pub job: Job,
    /// Whether the pictures are wanted.
    pub keep_pictures: bool,
    /// The steps that add noise and are recorded, for methods that are trained on them.
    pub window: Option<Window>,
}

impl<'a> Order<'a> {
    /// How many images there are.
    pub(super) fn count(&self) -> usize {
        if self.forks.is_empty() { self.samples.len() } else { self.forks.len() }
    }

    /// The number of the sample that `image` is or leaves.
    pub(super) fn sample(&self, image: usize) -> usize {
        self.forks.get(image).map_or(image, |fork| fork.trunk)
    }

    /// The prompt of `image`.
    pub(super) fn prompt(&self, image: usize) -> &'a Prompt {
        &self.prompts[self.sample(image)]
    }

    /// Those of some.
    pub(super) fn prompts(&self, images: Range<usize>) -> Vec<&'a Prompt> {
        images.map(|image| self.prompt(image)).collect()
    }
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

/// What was sampled.
pub struct Rollout {
    /// Clean latents, `[images, channels, h, w]`, unless steps are trained on.
    pub x0: Option<Tensor>,
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
    /// The gradient of the weighted sum of the rewards to each clean latent, in single precision, where that is wanted and not what
    /// is recorded of each step.
    pub reward_gradient: Option<Tensor>,
}

impl Rollout {
    /// Of `images` alone, in that order, without pictures.
    pub fn of(self, images: &[usize]) -> Self {
        let x0 = self.x0.as_ref().map(|x0| copy::gather(x0, images));
        let scores = self.scores.of(images);
        let recorded = self.recorded.map(|recorded| recorded.of(images));
        let reward_gradient = self.reward_gradient.as_ref().map(|gradient| copy::gather(gradient, images));
        Self { x0, scores, pictures: Vec::new(), recorded, reward_gradient, ..self }
    }
}

impl Rollout {
    /// The length of each image's gradient of the reward, or of those at its steps, all images of one after the other, if there are
    /// any.
    pub fn gradient_norms(&self) -> Vec<f64> {
        let at_steps = self.recorded.as_ref().and_then(|recorded| recorded.reward_gradient.as_ref());
        let Some(gradient) = at_steps.or(self.reward_gradient.as_ref()) else { return Vec::new() };
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
        let (sizes, count, side) = (pipeline.network.sizes(), order.count(), config.latent);
        let shape = [sizes.channels, side, side];
        let latents = |n: usize| [&[n], &shape[..]].concat();
        let mut x0 = order.window.is_none().then(|| Tensor::scratch(device, &latents(count)));
        let sampler: &dyn Sampler = if order.job.trains { &**sampler } else { &Euler };
        let sigmas = pipeline.schedule.sigmas(order.job.steps, sizes.tokens(side, side))?;
        let noisy = sampler.steps(&sigmas);
        let steps = match &order.window {
            Some(window) => sampler::windowed(sampler, &sigmas, &window.noisy),
            None => noisy.clone(),
        };
        let (samples, needs) = (order.samples.len(), algorithm.needs());
        let recorded = |window: Window| Recorded::new(device, window.trained, samples, shape, order.forks, needs);
        let mut seen = Seen { recorded: order.window.clone().map(recorded), probe: None };
        let path = Path { steps: &steps, guidance: order.job.guidance, noise: &[] };
        let policy = Policy { network, schedule: &pipeline.schedule, adapter: order.adapter };
        let whole: Vec<Range<usize>> = ranges(0..samples, config.raw.rollout.batch_size);
        // Of each stage all batches go through the network as often.
        let stages: Vec<Vec<Range<usize>>> = match order.forks {
            [] => vec![whole.clone()],
            forks => stages(forks).into_iter().map(|stage| ranges(stage, config.raw.rollout.batch_size)).collect(),
        };
        let texts_of = |batch: &Range<usize>| batch.clone().map(|i| order.prompt(i).text.as_str()).collect::<Vec<_>>();
        let keys_of = |batch: &Range<usize>, purpose| -> Vec<Key> {
            order.samples[batch.clone()].iter().map(|s| s.key(config.raw.seed, purpose, order.epoch, 0)).collect()
        };
        let start = |batch: &Range<usize>| {
            noise::normal(device, &keys_of(batch, Purpose::InitialLatent), &latents(batch.len()))
        };

        // All prompts first: then the encoders can go.
        device.phase("text encoders");
        let negative = {
            let _range = range("encode");
            for batch in device.rehearse(&whole) {
                prompts.prepare(&order.prompts[batch.clone()].iter().map(|p| p.text.as_str()).collect::<Vec<_>>())?;
                interrupt.check()?;
            }
            let negative = if path.is_guided() { Some(prompts.encode(&[""])?) } else { None };
            prompts.release();
            negative
        };
        clock.lap("rollout");

        if !order.forks.is_empty() {
            // The trunks, as far as something leaves them.
            device.phase(order.job.what);
            let _range = range("trunks");
            let last = order.window.as_ref().and_then(|window| window.trained.last());
            let end = last.map_or(0, |step| step + 1);
            let path = Path { steps: &steps[..end], ..path };
            for batch in device.rehearse(&whole) {
                let texts: Vec<&str> = order.prompts[batch.clone()].iter().map(|p| p.text.as_str()).collect();
                let embeds = prompts.encode(&texts)?;
                let on_step = |visit: Visit| {
                    device.lasting(|| seen.step(&visit, &noisy, policy, path, &texts, batch.start));
                    interrupt.check()
                };
                sample::sample(policy, path, start(batch), &embeds, negative.as_ref(), on_step)?;
                device.check()?;
            }
            clock.lap("rollout");
        }

        let mut sample = |batch: &Range<usize>| -> Result<(Sampled, Clock)> {
            let (mut clock, texts) = (Clock::start(), texts_of(batch));
            device.phase(order.job.what);
            let _range = range(order.job.what);
            let embeds = prompts.encode(&texts)?;
            let latents = match order.forks.get(batch.start) {
                Some(fork) => {
                    let draw = |fork: &Fork| {
                        let sample = order.samples[fork.trunk];
                        sample.key(config.raw.seed, Purpose::ForkNoise, order.epoch, fork.draw())
                    };
                    let keys: Vec<Key> = order.forks[batch.clone()].iter().map(draw).collect();
                    let recorded = seen.recorded.as_mut().expect("forks are trained on");
                    let next = device.region(|| recorded.fork(batch.clone(), &noisy[fork.step], &keys));
                    let path = Path { steps: &steps[fork.step + 1..], ..path };
                    sample::sample(policy, path, next, &embeds, negative.as_ref(), |_| interrupt.check())?
                }
                None => {
                    let streams = keys_of(batch, Purpose::SamplerNoise);
                    let path = Path { noise: &streams, ..path };
                    let on_step = |visit: Visit| {
                        device.lasting(|| seen.step(&visit, &noisy, policy, path, &texts, batch.start));
                        interrupt.check()
                    };
                    sample::sample(policy, path, start(batch), &embeds, negative.as_ref(), on_step)?
                }
            };
            device.check()?;
            sample::check_finite(&latents, |i| texts[i])?;
            if let Some(x0) = &mut x0 {
                copy::rows_into(x0, batch.start, &latents);
            }
            clock.lap("rollout");
            Ok((Sampled { images: batch.clone(), latents }, clock))
        };

        let wants_gradient = order.job.trains && needs.reward_gradient == Some(GradientAt::Terminal);
        let gradient = wants_gradient.then(|| Tensor::scratch(device, &latents(count)));
        let mut judge = Judge::new(device, &pipeline.vae, rewards, order, gradient);

        // A batch is decoded and scored beside the sampling of the next.
        let progress = Progress::new(order.job.what, count as u64);
        let mut waiting: Option<Sampled> = None;
        for batch in stages.iter().flat_map(|batches| device.rehearse(batches)).map(Some).chain([None]) {
            let sampled = waiting.take();
            let images = sampled.as_ref().map_or(0, |s| s.images.len());
            let (scored, next) = device.beside(
                || sampled.map(|sampled| judge.take(sampled)).transpose(),
                || batch.map(&mut sample).transpose(),
            );
            let (scored, next) = (scored?, next?);
            let (next, sampling) = next.map_or((None, None), |(next, clock)| (Some(next), Some(clock)));
            waiting = next;
            clock.add([scored, sampling]);
            progress.step(images as u64);
            interrupt.check()?;
        }
        progress.finish();
        if let Some(clean) = seen.recorded.as_mut().and_then(|recorded| recorded.reward_gradient.as_mut()) {
            judge.to_gradients(clean, interrupt)?;
            clock.lap("reward gradient");
        }
        let Seen { recorded, probe } = seen;
        let Worth { scores, seconds, pictures, gradient } = judge.finish();
        Ok(Rollout { x0, scores, reward_seconds: seconds, pictures, probe, recorded, reward_gradient: gradient })
    }
}

/// What is kept of the way.
struct Seen {
    recorded: Option<Recorded>,
    probe: Option<Probe>,
}

impl Seen {
    /// Takes in a step along `path` of the samples from `first` on, which have the prompts `texts`; `noisy` are the steps as they
    /// are where they add noise.
    fn step(&mut self, visit: &Visit, noisy: &[Step], policy: Policy, path: Path, texts: &[&str], first: usize) {
        if let Some(recorded) = &mut self.recorded {
            recorded.take(visit, &noisy[visit.step], first);
        }
        if self.probe.is_none() && visit.step == path.steps.len() / 2 {
            self.probe = Some(Probe::of(visit, policy, path.steps, texts));
        }
    }
}

impl Probe {
    /// The last sample of a batch at one of its steps.
    fn of(visit: &Visit, policy: Policy, steps: &[Step], texts: &[&str]) -> Self {
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
