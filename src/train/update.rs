//! One optimiser step: the gradient at its training points, and what follows from it.

use anyhow::Result;

use super::drift::{Drift, ratio_deviation};
use super::guard::Interrupt;
use super::points::{Batch, Inputs, Policies, accumulate, compare};
use super::prompts::PromptBank;
use super::rollout::{Probe, Rollout};
use super::scaler::LossScale;
use super::setup::Setup;
use super::state::State;
use crate::algorithms::together::parts;
use crate::algorithms::{self, Pairs, Point};
use crate::device::philox::Key;
use crate::device::{Device, Tensor};
use crate::ops::adamw::AdamW;
use crate::ops::{copy, noise, norm};
use crate::telemetry::Progress;

/// What an optimiser step did.
#[derive(Default)]
pub struct UpdateReport {
    /// The training loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// What was not finite, if the step was skipped for it.
    pub skipped: Option<String>,
    /// Whether the step was skipped because the loss had been scaled too much; the next one is scaled less.
    pub overflowed: bool,
    /// The largest difference between a velocity of the rollout and the same in training, if it was looked for.
    pub deviation: Option<f32>,
    /// How far from the base the policy was before this step, at one point of the rollout.
    pub drift: Option<Drift>,
    /// As [`algorithms::Loss::ratios`], of all points.
    pub ratios: Vec<f64>,
    /// As [`algorithms::Loss::clipped`].
    pub clipped: usize,
    /// As [`algorithms::Loss::pairs`], of all points.
    pub pairs: Pairs,
}

/// What batches of points are made from.
struct Epoch<'a> {
    device: &'a Device,
    rollout: &'a Rollout,
    /// The prompts of its images.
    texts: &'a [&'a str],
    /// Whether some policy's velocity is guided.
    is_guided: bool,
}

impl Epoch<'_> {
    /// What `points` are made from.
    fn inputs(&self, points: &[Point]) -> Inputs {
        let gather = |all: &Tensor| copy::gather(all, &points.iter().map(|p| p.image).collect::<Vec<_>>());
        let keys: Vec<Key> = points.iter().map(|p| p.noise).collect();
        let drawn = |shape: &[usize]| noise::normal(self.device, &keys, shape);
        let Some(recorded) = &self.rollout.recorded else {
            let x0 = gather(self.rollout.x0.as_ref().expect("kept where no steps are"));
            return Inputs::Noised { noise: drawn(x0.shape()), x0 };
        };
        let before: Vec<usize> = points.iter().map(|p| recorded.before(p.step, p.image)).collect();
        let x = copy::gather(&recorded.x, &before);
        let at_steps = recorded.reward_gradient.as_ref().map(|gradient| copy::gather(gradient, &before));
        if let Some(reward_gradient) = at_steps.or_else(|| self.rollout.reward_gradient.as_ref().map(gather)) {
            return Inputs::Led { x, reward_gradient };
        }
        match &recorded.next {
            Some(next) => {
                let after: Vec<usize> = points.iter().map(|p| recorded.after(p.step, p.image)).collect();
                let mean_old = recorded.mean.as_ref().map(|mean| copy::gather(mean, &before));
                Inputs::Stepped { x, next: copy::gather(next, &after), mean_old }
            }
            None => {
                let velocity = recorded.velocity.as_ref().expect("kept where the samples after are not");
                // The rollout's own, drawn again.
                Inputs::Matched { velocity_old: copy::gather(velocity, &before), noise: drawn(x.shape()), x }
            }
        }
    }

    /// `points` with all that goes through the network with them.
    fn batch<'p>(&self, prompts: &mut PromptBank, points: &'p [Point], probe: Option<&'p Probe>) -> Result<Batch<'p>> {
        let inputs = self.inputs(points);
        let texts: Vec<&str> = points.iter().map(|p| self.texts[p.image]).collect();
        let embeds = prompts.encode(&texts)?;
        let negative = if self.is_guided { Some(prompts.encode(&[""])?) } else { None };
        let probe = match probe {
            Some(probe) => Some((probe, prompts.encode(&[&probe.text])?)),
            None => None,
        };
        Ok(Batch { points, inputs, prompts: embeds, negative, probe })
    }
}

impl Setup {
    /// One optimiser step at `points` of `rollout`, whose images have the prompts `texts`. The first of an epoch, before which
    /// nothing has changed, can be interrupted.
    ///
    /// # Errors
    /// [`Interrupted`](super::guard::Interrupted), or what an encoder reports; in the first of an epoch, if the ratios of the
    /// unchanged policy are further from 1 than the algorithm clips them. `state` is unchanged then.
    pub(super) fn update(
        &mut self,
        state: &mut State,
        rollout: &Rollout,
        texts: &[&str],
        points: &[Point],
        first: Option<&Interrupt>,
    ) -> Result<UpdateReport> {
        let raw = &self.config.raw;
        let mut grads = Tensor::zeros(&self.device, &[state.bank.layout().len()]);
        let policies = Policies {
            network: &*self.pipeline.network,
            schedule: &self.pipeline.schedule,
            bank: &state.bank,
            checkpointing: raw.train.activation_checkpointing,
            loss_scale: state.loss_scale.as_ref().map_or(1.0, LossScale::scale),
        };
        let scaled = policies.loss_scale;
        let lr = self.learning_rate.after(state.moments.steps);
        let mut report = UpdateReport { lr, ..UpdateReport::default() };
        if points.is_empty() {
            // Nothing to learn from.
            return Ok(report);
        }
        let algorithm = &*self.algorithm;
        let is_guided = algorithms::is_guided(algorithm);
        let epoch = Epoch { device: &self.device, rollout, texts, is_guided };
        let (progress, total) = (Progress::new("update", points.len() as u64), points.len());
        let parts = parts(points, raw.train.batch_size);
        let mut probe = rollout.probe.as_ref();
        for part in self.device.rehearse(&parts) {
            let chunks: Vec<&[Point]> = part.chunks(raw.train.batch_size).collect();
            // Where points that are seen together do not fit into a batch, their loss comes first, from passes of its own.
            let mut known = vec![None; chunks.len()];
            if chunks.len() > 1 {
                let mut products = Vec::new();
                for points in &chunks {
                    let batch = epoch.batch(&mut self.prompts, points, None)?;
                    products.extend(self.device.region(|| compare(policies, algorithm, &batch)));
                    first.map_or(Ok(()), Interrupt::check)?;
                }
                let loss = algorithm.loss(part, &products, total);
                known = loss.split(chunks.iter().map(|c| c.len())).into_iter().map(Some).collect();
            }
            for (points, known) in chunks.into_iter().zip(known) {
                let batch = epoch.batch(&mut self.prompts, points, probe.take())?;
                let done = self.device.region(|| accumulate(policies, algorithm, &batch, known, total, &mut grads));
                report.loss += done.loss;
                report.ratios.extend(done.ratios);
                report.clipped += done.clipped;
                report.pairs += done.pairs;
                report.deviation = report.deviation.or(done.deviation);
                report.drift = report.drift.or(done.drift);
                progress.step(points.len() as u64);
                first.map_or(Ok(()), Interrupt::check)?;
            }
        }
        progress.finish();
        // Nothing is sampled in a plan.
        let compared = first.filter(|_| !self.device.is_plan());
        if let Some(noise) = compared.and_then(|_| ratio_deviation(&report)) {
            algorithms::check_ratio_noise(algorithm, noise)?;
        }

        self.device.check()?;
        let modules = self.pipeline.network.modules();
        report.grad_norm = norm::sum_of_squares(&grads).sqrt() / scaled;
        let wrong = match norm::first_non_finite(&grads) {
            Some((at, value)) => {
                let (name, element) = state.bank.layout().name_of(modules, at);
                Some(format!("{name} is {value} at element {element}"))
            }
            None => (!report.loss.is_finite()).then(|| format!("the loss is {}", report.loss)),
        };
        match (wrong, &mut state.loss_scale) {
            (Some(what), Some(scale)) => {
                scale.back_off(&what)?;
                report.overflowed = true;
            }
            (what @ Some(_), _) => report.skipped = what,
            (None, scale) => {
                let factor = clip_factor(report.grad_norm, raw.optimizer.max_grad_norm) / scaled as f32;
                scale.iter_mut().for_each(LossScale::grow);
                report.skipped = state.grad_norms.outlier(report.grad_norm, raw.optimizer.max_grad_outlier);
                if report.skipped.is_none() {
                    let optimizer = AdamW { lr, ..self.optimizer };
                    self.device.region(|| state.step(&optimizer, &*self.algorithm, &grads, factor));
                }
            }
        }
        Ok(report)
    }
}

/// What gradients of norm `norm` are multiplied by so that it is at most `max` (0: no limit), as
/// `torch.nn.utils.clip_grad_norm_` does.
pub fn clip_factor(norm: f64, max: f64) -> f32 {
    let factor = max / (norm + 1e-6);
    if max > 0.0 && factor < 1.0 { factor as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_leaves_short_gradients_alone_and_brings_long_ones_to_the_limit() {
        assert_eq!([clip_factor(0.9, 1.0), clip_factor(5.0, 0.0)], [1.0, 1.0]);
        assert!((f64::from(clip_factor(8.0, 0.5)) * 8.0 - 0.5).abs() < 1e-6);
    }
}
