//! One optimiser step: the loss and its gradient at training points, and what follows from them.

use anyhow::Result;

use super::guard::Interrupt;
use super::rollout::{Probe, Rollout};
use super::scaler::LossScale;
use super::setup::Setup;
use super::state::State;
use crate::algorithms::{self, Algorithm, Guidance, Operand, Point};
use crate::device::Tensor;
use crate::device::philox::Key;
use crate::models::lora::{AdapterBank, Adapters, Rows, Slot, Trained};
use crate::models::network::{Checkpointing, Network};
use crate::models::text::PromptEmbeds;
use crate::ops::adamw::AdamW;
use crate::ops::{copy, noise, noising, norm, step};
use crate::rollout::sample;
use crate::rollout::schedule::Schedule;
use crate::telemetry::Progress;

/// What evaluates a training point: the network and the policies on it.
#[derive(Clone, Copy)]
pub struct Policies<'a> {
    /// The network with its frozen base.
    pub network: &'a dyn Network,
    /// Maps times to the network's time input.
    pub schedule: &'a Schedule,
    /// The adapters.
    pub bank: &'a AdapterBank,
    /// What the forward keeps.
    pub checkpointing: Checkpointing,
    /// What the loss is times for the backward, a power of two.
    pub loss_scale: f64,
}

/// What points are made from, `[n, channels, h, w]` each.
pub enum Inputs {
    /// Clean latents and noise.
    Noised {
        /// The clean latents.
        x0: Tensor,
        /// The noise.
        noise: Tensor,
    },
    /// Steps of a rollout.
    Stepped {
        /// The samples before.
        x: Tensor,
        /// The samples after.
        next: Tensor,
        /// The steps' means by the policy that sampled, if the algorithm needs them.
        mean_old: Option<Tensor>,
    },
    /// Steps of a rollout, by where their noise points.
    Matched {
        /// The samples before.
        x: Tensor,
        /// The velocities there of the policy that sampled, with guidance.
        velocity_old: Tensor,
        /// The noise.
        noise: Tensor,
    },
}

/// Points that go through the network together, one row per point.
pub struct Batch<'a> {
    /// The points.
    pub points: &'a [Point],
    /// Where the network is evaluated, and with what its velocity there is compared.
    pub inputs: Inputs,
    /// Their conditions.
    pub prompts: PromptEmbeds,
    /// What guidance leads away from, one row, where the loss has guidance.
    pub negative: Option<PromptEmbeds>,
    /// A velocity of the rollout to compare with, and its condition.
    pub probe: Option<(&'a Probe, PromptEmbeds)>,
}

/// The velocities at some points, `[n, channels, h, w]` each.
pub struct Evaluated {
    /// The points' share of the loss.
    pub loss: f64,
    /// The trained policy's velocity.
    pub theta: Tensor,
    /// The reference's, if the algorithm needs it.
    pub reference: Option<Tensor>,
    /// The lagged policy's, if the algorithm needs it.
    pub old: Option<Tensor>,
    /// As [`algorithms::Loss::ratios`].
    pub ratios: Vec<f64>,
    /// As [`algorithms::Loss::clipped`].
    pub clipped: usize,
    /// The largest difference between the rollout's velocity and the same here, if there was a probe.
    pub deviation: Option<f32>,
}

/// Adds to `grads` the gradient of the loss, times its scale, at the points of `batch`, which are some of `total`.
pub fn accumulate(
    p: Policies,
    algorithm: &dyn Algorithm,
    batch: &Batch,
    total: usize,
    grads: &mut Tensor,
) -> Evaluated {
    let (n, needs, guidance) = (batch.points.len(), algorithm.needs(), algorithm.guidance());
    let t: Vec<f32> = batch.points.iter().map(|p| p.t).collect();
    let x = match &batch.inputs {
        Inputs::Noised { x0, noise } => noising::forward(x0, noise, &t),
        Inputs::Stepped { x, .. } | Inputs::Matched { x, .. } => x.clone(),
    };

    // All policies' rows in one forward, the trained ones first; with guidance the unconditional half of each before the other.
    let reference = p.bank.has(Slot::Reference).then_some(Slot::Reference);
    let each: Vec<Option<Slot>> = std::iter::once(Some(Slot::Theta))
        .chain(needs.reference.then_some(reference))
        .chain(needs.old.then_some(Some(Slot::Old)))
        .collect();
    let negative = guidance.map(|_| {
        let row = batch.negative.as_ref().expect("the loss has guidance");
        row.rows(&vec![0; n])
    });
    let halves: Vec<&PromptEmbeds> = negative.iter().chain([&batch.prompts]).collect();
    let per_policy = n * halves.len();
    let probe = batch.probe.as_ref();
    let rows = Rows::runs(each.iter().map(|s| (*s, per_policy)).chain(probe.map(|(probe, _)| (probe.slot, 1))));
    // The probe may go through the trained policy too.
    let rows = rows.training(per_policy);
    let blocks = each.len() * halves.len();
    let mut timestep: Vec<f32> = (0..blocks).flat_map(|_| &t).map(|t| p.schedule.timestep(*t)).collect();
    timestep.extend(probe.map(|(probe, _)| probe.timestep));
    let inputs: Vec<&Tensor> = (0..blocks).map(|_| &x).chain(probe.map(|(probe, _)| &probe.x)).collect();
    let conditions: Vec<&PromptEmbeds> =
        each.iter().flat_map(|_| &halves).copied().chain(probe.map(|(_, e)| e)).collect();
    let condition = PromptEmbeds::concat(&conditions);
    let adapters = Adapters { bank: Some(p.bank), rows: &rows };
    let (velocity, saved) =
        p.network.forward_saved(&copy::concat(&inputs), condition.condition(&timestep), &adapters, p.checkpointing);
    drop(condition);

    let mut policies = (0..each.len()).map(|i| {
        let velocity = velocity.slice(i * per_policy..(i + 1) * per_policy);
        match guidance {
            None => velocity,
            Some(Guidance { scale, .. }) => sample::guided(step::Inputs {
                x: &x,
                velocity: &velocity,
                guidance: Some(scale),
                history: [None; 2],
                noise: &[],
            }),
        }
    });
    let theta = policies.next().expect("the trained rows");
    let reference = if needs.reference { policies.next() } else { None };
    let old = if needs.old { policies.next() } else { None };
    drop(policies);
    let deviation =
        probe.map(|(probe, _)| largest_difference(&probe.velocity, &velocity.slice(blocks * n..rows.count())));

    let operand = |operand: Operand| match (operand, &batch.inputs) {
        (Operand::Theta, _) => &theta,
        (Operand::Reference, _) => reference.as_ref().expect("the algorithm says that it needs it"),
        (Operand::Old, _) => old.as_ref().expect("the algorithm says that it needs it"),
        (Operand::Noise, Inputs::Noised { noise, .. } | Inputs::Matched { noise, .. }) => noise,
        (Operand::X0, Inputs::Noised { x0, .. }) => x0,
        (Operand::VelocityOld, Inputs::Matched { velocity_old, .. }) => velocity_old,
        (Operand::X, Inputs::Stepped { x, .. }) => x,
        (Operand::Next, Inputs::Stepped { next, .. }) => next,
        (Operand::MeanOld, Inputs::Stepped { mean_old: Some(mean), .. }) => mean,
        (other, _) => unreachable!("{other:?} of points of the other kind"),
    };
    let found = algorithms::evaluate(algorithm, batch.points, operand, total, p.loss_scale);
    let mut trained = Trained { bank: p.bank, slot: Slot::Theta, grads };
    p.network.backward(&found.dv, saved, &mut trained, false);
    Evaluated { loss: found.loss, theta, reference, old, ratios: found.ratios, clipped: found.clipped, deviation }
}

/// The largest element of `|a − b|`; NaN if there is one.
fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let pairs = a.to_host().into_iter().zip(b.to_host());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

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
    /// As [`algorithms::Loss::ratios`], of all points.
    pub ratios: Vec<f64>,
    /// As [`algorithms::Loss::clipped`].
    pub clipped: usize,
}

impl Setup {
    /// What `points` of `rollout` are made from.
    fn inputs(&self, rollout: &Rollout, points: &[Point]) -> Inputs {
        let keys: Vec<Key> = points.iter().map(|p| p.noise).collect();
        let drawn = |shape: &[usize]| noise::normal(&self.device, &keys, shape);
        let Some(recorded) = &rollout.recorded else {
            let all = rollout.x0.as_ref().expect("kept where no steps are");
            let x0 = copy::gather(all, &points.iter().map(|p| p.image).collect::<Vec<_>>());
            return Inputs::Noised { noise: drawn(x0.shape()), x0 };
        };
        let before: Vec<usize> = points.iter().map(|p| recorded.before(p.step, p.image)).collect();
        let x = copy::gather(&recorded.x, &before);
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

    /// One optimiser step at `points` of `rollout`, whose images have the prompts `texts`.
    ///
    /// # Errors
    /// [`Interrupted`](super::guard::Interrupted), or what an encoder reports; `state` is unchanged then.
    pub(super) fn update(
        &mut self,
        state: &mut State,
        rollout: &Rollout,
        texts: &[&str],
        points: &[Point],
        interrupt: &Interrupt,
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
        let progress = Progress::new("update", points.len() as u64);
        let chunks: Vec<&[Point]> = points.chunks(raw.train.batch_size).collect();
        for (i, points) in self.device.rehearse(&chunks).enumerate() {
            let images: Vec<usize> = points.iter().map(|p| p.image).collect();
            let inputs = self.inputs(rollout, points);
            let prompts = self.prompts.encode(&images.iter().map(|i| texts[*i]).collect::<Vec<_>>())?;
            let negative = match self.algorithm.guidance() {
                Some(_) => Some(self.prompts.encode(&[""])?),
                None => None,
            };
            let probe = match rollout.probe.as_ref().filter(|_| i == 0) {
                Some(probe) => Some((probe, self.prompts.encode(&[&probe.text])?)),
                None => None,
            };
            let batch = Batch { points, inputs, prompts, negative, probe };
            let total = chunks.iter().map(|c| c.len()).sum();
            let done = self.device.region(|| accumulate(policies, &*self.algorithm, &batch, total, &mut grads));
            report.loss += done.loss;
            report.ratios.extend(done.ratios);
            report.clipped += done.clipped;
            report.deviation = report.deviation.or(done.deviation);
            progress.step(points.len() as u64);
            interrupt.check()?;
        }
        progress.finish();

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
                let optimizer = AdamW { lr, ..self.optimizer };
                self.device.region(|| state.step(&optimizer, &*self.algorithm, &grads, factor));
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
