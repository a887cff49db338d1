//! The velocities of all policies at training points, and what the loss makes of them.

use super::drift::Drift;
use super::rollout::Probe;
use crate::algorithms::{self, Algorithm, Loss, Operand, Pairs, Point};
use crate::device::Tensor;
use crate::models::lora::{AdapterBank, Adapters, Rows, Slot, Trained};
use crate::models::network::{Checkpointing, Network};
use crate::models::text::PromptEmbeds;
use crate::ops::products::Products;
use crate::ops::{copy, noising, step};
use crate::rollout::sample;
use crate::rollout::schedule::Schedule;

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
    /// What a rollout went through, and where it should have gone.
    Led {
        /// The samples on its way.
        x: Tensor,
        /// The gradients of the reward at its end.
        reward_gradient: Tensor,
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
    /// As [`algorithms::Loss::pairs`].
    pub pairs: Pairs,
    /// The largest difference between the rollout's velocity and the same here, if there was a probe.
    pub deviation: Option<f32>,
    /// How far from the base the trained policy is there.
    pub drift: Option<Drift>,
}

/// A policy that is evaluated at every point of a batch.
#[derive(Clone, Copy)]
struct Evaluator {
    of: Operand,
    slot: Option<Slot>,
    guidance: Option<f32>,
}

impl Evaluator {
    /// Those whose velocities `algorithm` compares, the trained one first.
    fn all(algorithm: &dyn Algorithm, reference: Option<Slot>) -> Vec<Self> {
        let (needs, guidance) = (algorithm.needs(), algorithm.guidance().map(|g| g.scale));
        let guided = guidance.or_else(|| algorithm.reference_guidance());
        let one = |of, slot, guidance| Self { of, slot, guidance };
        std::iter::once(one(Operand::Theta, Some(Slot::Theta), guidance))
            .chain(needs.reference.then_some(one(Operand::Reference, reference, guided)))
            .chain(needs.old.then_some(one(Operand::Old, Some(Slot::Old), guidance)))
            .collect()
    }

    /// The rows that each point has.
    fn rows(&self) -> usize {
        1 + usize::from(self.guidance.is_some())
    }
}

/// All policies' rows at the points of a batch, as one forward takes them: one policy after the other, with guidance the
/// unconditional half before the other; the probe's last: of the policy that sampled, the trained one and the reference.
struct Stacked {
    each: Vec<Evaluator>,
    /// The points, `[n, channels, h, w]`.
    x: Tensor,
    rows: Rows,
}

/// What goes into that forward.
struct Feed {
    x: Tensor,
    timestep: Vec<f32>,
    condition: PromptEmbeds,
}

/// The velocities at the points of a batch.
struct Velocities {
    each: Vec<(Operand, Tensor)>,
    /// At the probe, if there is one.
    probed: Option<[Tensor; 3]>,
}

impl Stacked {
    fn new(p: Policies, algorithm: &dyn Algorithm, batch: &Batch) -> (Self, Feed) {
        let (n, probe) = (batch.points.len(), batch.probe.as_ref());
        let t: Vec<f32> = batch.points.iter().map(|p| p.t).collect();
        let x = match &batch.inputs {
            Inputs::Noised { x0, noise } => noising::forward(x0, noise, &t),
            Inputs::Stepped { x, .. } | Inputs::Matched { x, .. } | Inputs::Led { x, .. } => x.clone(),
        };
        let reference = p.bank.has(Slot::Reference).then_some(Slot::Reference);
        let each = Evaluator::all(algorithm, reference);
        let negative = algorithms::is_guided(algorithm).then(|| {
            let row = batch.negative.as_ref().expect("the loss has guidance");
            row.rows(&vec![0; n])
        });
        let halves = |e: &Evaluator| e.guidance.and(negative.as_ref()).into_iter().chain([&batch.prompts]);
        let probed = probe.map(|(probe, _)| [probe.slot, Some(Slot::Theta), reference]);
        let at_probe = || probe.into_iter().flat_map(|at| std::iter::repeat_n(at, 3));
        let runs =
            each.iter().map(|e| (e.slot, e.rows() * n)).chain(probed.into_iter().flatten().map(|slot| (slot, 1)));
        // The probe may go through the trained policy too.
        let rows = Rows::runs(runs).training(each[0].rows() * n);
        let blocks: usize = each.iter().map(Evaluator::rows).sum();
        let mut timestep: Vec<f32> = (0..blocks).flat_map(|_| &t).map(|t| p.schedule.timestep(*t)).collect();
        timestep.extend(at_probe().map(|(probe, _)| probe.timestep));
        let inputs: Vec<&Tensor> = (0..blocks).map(|_| &x).chain(at_probe().map(|(probe, _)| &probe.x)).collect();
        let conditions: Vec<&PromptEmbeds> = each.iter().flat_map(halves).chain(at_probe().map(|(_, e)| e)).collect();
        let feed = Feed { x: copy::concat(&inputs), timestep, condition: PromptEmbeds::concat(&conditions) };
        (Self { each, x, rows }, feed)
    }

    /// The policies' velocities, of those of all rows.
    fn split(&self, velocity: &Tensor) -> Velocities {
        let (n, mut start) = (self.x.dim(0), 0);
        let one = |e: &Evaluator| {
            let rows = velocity.slice(start..start + e.rows() * n);
            start += e.rows() * n;
            let velocity = match e.guidance {
                None => rows,
                guidance => sample::guided(step::Inputs {
                    x: &self.x,
                    velocity: &rows,
                    guidance,
                    history: [None; 2],
                    noise: &[],
                }),
            };
            (e.of, velocity)
        };
        let each = self.each.iter().map(one).collect();
        let probed = (start < self.rows.count()).then(|| [0, 1, 2].map(|i| velocity.slice(start + i..start + i + 1)));
        Velocities { each, probed }
    }
}

impl Velocities {
    fn find(&self, of: Operand) -> Option<&Tensor> {
        self.each.iter().find(|(other, _)| *other == of).map(|(_, velocity)| velocity)
    }

    /// An operand of a difference at points that are made of `inputs`.
    fn operand<'a>(&'a self, inputs: &'a Inputs, of: Operand) -> &'a Tensor {
        match (of, inputs) {
            (Operand::Theta | Operand::Reference | Operand::Old, _) => {
                self.find(of).expect("the algorithm says that it needs it")
            }
            (Operand::Noise, Inputs::Noised { noise, .. } | Inputs::Matched { noise, .. }) => noise,
            (Operand::VelocityOld, Inputs::Matched { velocity_old, .. }) => velocity_old,
            (Operand::X0, Inputs::Noised { x0, .. }) => x0,
            (Operand::X, Inputs::Stepped { x, .. }) => x,
            (Operand::Next, Inputs::Stepped { next, .. }) => next,
            (Operand::MeanOld, Inputs::Stepped { mean_old: Some(mean), .. }) => mean,
            (Operand::RewardGradient, Inputs::Led { reward_gradient, .. }) => reward_gradient,
            (other, _) => unreachable!("{other:?} of points of the other kind"),
        }
    }
}

/// What the loss at the points of `batch` is made of, for points whose loss looks at others too.
pub fn compare(p: Policies, algorithm: &dyn Algorithm, batch: &Batch) -> Vec<Products> {
    let (stacked, feed) = Stacked::new(p, algorithm, batch);
    let adapters = Adapters { bank: Some(p.bank), rows: &stacked.rows };
    let velocity = p.network.forward(&feed.x, feed.condition.condition(&feed.timestep), &adapters);
    let velocities = stacked.split(&velocity);
    algorithms::compare(algorithm, batch.points, |of| velocities.operand(&batch.inputs, of))
}

/// Adds to `grads` the gradient of the loss, times its scale, at the points of `batch`, which are some of `total`; the loss is
/// `known` where it looks at others too.
pub fn accumulate(
    p: Policies,
    algorithm: &dyn Algorithm,
    batch: &Batch,
    known: Option<Loss>,
    total: usize,
    grads: &mut Tensor,
) -> Evaluated {
    let (stacked, feed) = Stacked::new(p, algorithm, batch);
    let adapters = Adapters { bank: Some(p.bank), rows: &stacked.rows };
    let condition = feed.condition.condition(&feed.timestep);
    let (velocity, saved) = p.network.forward_saved(&feed.x, condition, &adapters, p.checkpointing);
    drop(feed);
    let mut velocities = stacked.split(&velocity);
    let (deviation, drift) = match batch.probe.as_ref().zip(velocities.probed.take()) {
        Some(((probe, _), [sampled, theta, reference])) => {
            (Some(largest_difference(&probe.velocity, &sampled)), Some(Drift::of(&theta, &reference)))
        }
        None => (None, None),
    };

    let operand = |of| velocities.operand(&batch.inputs, of);
    let loss = known
        .unwrap_or_else(|| algorithm.loss(batch.points, &algorithms::compare(algorithm, batch.points, operand), total));
    let dv = algorithms::gradient(algorithm, batch.points, operand, &loss, p.loss_scale);
    let mut trained = Trained { bank: p.bank, slot: Slot::Theta, grads };
    p.network.backward(&dv, saved, &mut trained, false);
    let of = |of| velocities.find(of).cloned();
    Evaluated {
        theta: of(Operand::Theta).expect("the trained rows"),
        reference: of(Operand::Reference),
        old: of(Operand::Old),
        loss: loss.value,
        ratios: loss.ratios,
        clipped: loss.clipped,
        pairs: loss.pairs,
        deviation,
        drift,
    }
}

/// The largest element of `|a − b|`; NaN if there is one.
fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let pairs = a.to_host().into_iter().zip(b.to_host());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}
