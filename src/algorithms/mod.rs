//! What makes one training method differ from another: at which points it trains, which policies' velocities it compares
//! there, and how the loss and its gradient follow from inner products of their differences. The rest (rollout, rewards,
//! forward and backward, optimiser) is shared.

pub mod advantage;
pub mod awm;
pub mod crd;
pub mod dgpo;
pub mod dpo;
pub mod grpo;
pub mod nft;
pub mod ram;
pub mod rsm;
pub mod rsm_first_order;
pub mod sft;
pub mod steps;
mod strata;
mod surrogate;
#[cfg(test)]
mod testing;
pub mod time;
pub mod together;

use anyhow::{Result, bail, ensure};

use self::advantage::{Advantages, group_centered};
use crate::config::method::MethodKeys;
use crate::config::raw::Weights as Sampled;
use crate::config::{Each, TrainConfig};
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::{self, Products, Weights};
use crate::ops::{combine, copy};
use crate::rollout::branch::Fork;
use crate::rollout::schedule::Schedule;

pub use awm::Awm;
pub use crd::Crd;
pub use dgpo::Dgpo;
pub use dpo::Dpo;
pub use grpo::Grpo;
pub use nft::Nft;
pub use ram::Ram;
pub use rsm::Rsm;
pub use rsm_first_order::RsmFirstOrder;
pub use sft::Sft;

/// One place that is trained at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The number of the image whose clean latent it is made of.
    pub image: usize,
    /// Its time in (0, 1].
    pub t: f32,
    /// The stream of its noise.
    pub noise: Key,
    /// The image's advantage.
    pub advantage: f64,
    /// The step of the rollout that it is, for methods that are trained on those.
    pub step: usize,
    /// How likely the policy that sampled it found it, for methods that compare; none if that is the trained one as it is.
    pub log_prob_old: Option<f64>,
    /// What the gradient of its image's reward is times, for methods that follow it.
    pub gradient_scale: f64,
    /// The loss looks at points of the same number together: those of a pair or a group at one time. None: at this one alone.
    pub together: Option<usize>,
    /// What the terms of its loss are times, for methods where that depends on the other points of an optimiser step.
    pub share: Share,
}

/// What the terms of a point's loss are times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// What makes good images likelier.
    pub policy: f64,
    /// What holds the policy to the reference.
    pub anchor: f64,
}

impl Point {
    /// A point whose noise is not drawn yet.
    pub fn new(image: usize, t: f32, advantage: f64) -> Self {
        let (noise, share) = (Key::new(0, Purpose::ForwardNoise), Share::default());
        Self { image, t, noise, advantage, step: 0, log_prob_old: None, gradient_scale: 1.0, together: None, share }
    }
}

/// A tensor of a batch of points, one row per point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The trained policy's velocity.
    Theta,
    /// The reference's.
    Reference,
    /// The lagged policy's.
    Old,
    /// The noise.
    Noise,
    /// The clean latent.
    X0,
    /// The sample before a step of the rollout.
    X,
    /// The sample after it.
    Next,
    /// The mean of the step by the policy that sampled.
    MeanOld,
    /// The gradient of the reward to the latent at the end of the rollout.
    RewardGradient,
    /// The velocity of the policy that sampled, with guidance.
    VelocityOld,
}

/// `Σ weight·operand`, added up in the order it is written in.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Weights and operands.
    pub terms: Vec<(Weight, Operand)>,
}

/// A factor on an operand of a difference.
#[derive(Clone, Debug)]
pub enum Weight {
    /// The same for every point.
    All(f32),
    /// Each point's own.
    Rows(Vec<f32>),
}

impl Weight {
    /// As the op takes it.
    pub fn weights(&self) -> Weights<'_> {
        match self {
            Self::All(w) => Weights::All(*w),
            Self::Rows(w) => Weights::Rows(w),
        }
    }
}

impl Difference {
    /// The sum of operands with signs.
    pub fn signed(terms: &[(f32, Operand)]) -> Self {
        Self { terms: terms.iter().map(|(w, o)| (Weight::All(*w), *o)).collect() }
    }
}

/// Which velocities besides the trained policy's are evaluated at every point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The reference's.
    pub reference: bool,
    /// The lagged policy's.
    pub old: bool,
    /// The means of the rollout's steps.
    pub mean_old: bool,
    /// The gradients of the rewards to the clean latents, and the samples before every step of the rollout.
    pub reward_gradient: bool,
    /// The velocities of the rollout's steps, and their noise in the place of the samples after.
    pub velocity_old: bool,
}

/// The loss of some points and its gradient: `dL/dv = (1/D)·Σ_k coefficients[k]·difference_k` for each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// The points' share of the loss.
    pub value: f64,
    /// One per difference and point.
    pub coefficients: Vec<Vec<f64>>,
    /// How much likelier the trained policy makes each point than the one that sampled it, of methods that compare.
    pub ratios: Vec<f64>,
    /// How many of these were clipped.
    pub clipped: usize,
}

impl Loss {
    /// The same for the points in runs of these `lengths`; the value and what was clipped go with the first.
    pub fn split(self, lengths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let mut start = 0;
        let run = |length: usize| {
            let range = start..start + length;
            start += length;
            let is_first = range.start == 0;
            Self {
                value: if is_first { self.value } else { 0.0 },
                clipped: if is_first { self.clipped } else { 0 },
                coefficients: self.coefficients.iter().map(|c| c[range.clone()].to_vec()).collect(),
                ratios: self.ratios.get(range).unwrap_or_default().to_vec(),
            }
        };
        lengths.into_iter().map(run).collect()
    }
}

/// Which steps of an epoch's rollouts a method is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Those that add noise; the others follow the ODE.
    pub noisy: Vec<usize>,
    /// Those that are trained on, in their order.
    pub trained: Vec<usize>,
}

impl Window {
    /// Noise at the steps of `noisy`, training at those of `trained`.
    pub fn new(noisy: impl IntoIterator<Item = usize>, trained: impl IntoIterator<Item = usize>) -> Self {
        Self { noisy: noisy.into_iter().collect(), trained: trained.into_iter().collect() }
    }
}

/// Classifier-free guidance of the velocities that a loss compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Its scale.
    pub scale: f32,
    /// Whether the unconditional velocity is trained too.
    pub trains_unconditional: bool,
}

/// What an epoch's points are made from.
pub struct Scored<'a> {
    /// One per image.
    pub advantages: &'a [f64],
    /// The number of each image's group; numbers are given in the order of the groups' first images.
    pub groups: &'a [usize],
    /// The stream of a use for an image and a draw.
    pub key: &'a dyn Fn(Purpose, usize, u32) -> Key,
    /// The steps that were recorded, and how likely each image's was: step by step, all images of one after the other.
    pub steps: &'a [usize],
    /// As said.
    pub log_probs: &'a [f64],
    /// The length of each image's gradient of the reward, for methods that follow it.
    pub gradient_norms: &'a [f64],
    /// Where each image left its trunk, if images are forks; the recorded step is that one alone.
    pub forks: &'a [Fork],
}

impl Scored<'_> {
    /// How likely the recorded `step` of an image was, where that is known.
    fn log_prob(&self, step: usize, image: usize) -> Option<f64> {
        let row = self.steps.iter().position(|s| *s == step)?;
        self.log_probs.get(row * self.advantages.len() + image).copied()
    }
}

/// A training method.
pub trait Algorithm: Send + Sync {
    /// Its name in configs.
    fn name(&self) -> &'static str;

    /// Which policy samples the images that are learnt from after `updates` optimiser steps.
    fn rollout(&self, updates: u64) -> Slot;

    /// Whether images are mere data to it, whichever policy sampled them; else it compares how likely its policies make them,
    /// and they must be samples of the very network that is trained.
    fn rollout_is_data(&self) -> bool;

    /// The slots it has beside the trained one, all of which begin as copies of that.
    fn slots(&self) -> &'static [Slot];

    /// Which velocities its loss compares.
    fn needs(&self) -> Needs;

    /// What the rewards of an epoch's images say of each; images with equal `group` are compared with one another.
    fn advantages(&self, rewards: &[f64], group: &[&str]) -> Advantages {
        group_centered(rewards, group, self.advantage_eps())
    }

    /// What is added to the standard deviation of the rewards.
    fn advantage_eps(&self) -> f64 {
        1e-4
    }

    /// Training points per epoch of an image that is trained on.
    fn points_per_image(&self) -> usize;

    /// How many of the `images` of a prompt are trained on, if no two have the same reward.
    fn chosen(&self, images: usize) -> usize {
        images
    }

    /// How many forks each step of a sample has, if images are those; else none.
    fn forks(&self) -> &[usize] {
        &[]
    }

    /// What an epoch makes of a prompt with so many samples.
    fn each(&self, samples: usize) -> Each {
        Each { images: samples, points: self.chosen(samples) * self.points_per_image() }
    }

    /// Whether its ratios are to the policy that sampled, and so 1 before the first optimiser step of an epoch.
    fn compares_with_rollout(&self) -> bool {
        true
    }

    /// Optimiser steps of an epoch.
    fn updates_per_epoch(&self) -> usize;

    /// The points of each optimiser step of an epoch.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>>;

    /// The steps of epoch `epoch` of a run with `seed` that it is trained on; none if it takes clean latents.
    fn window(&self, _seed: u64, _epoch: u32) -> Option<Window> {
        None
    }

    /// Sets what the points of an optimiser step say of one another: [`Point::share`].
    fn weigh(&self, _points: &mut [Point]) {}

    /// The guidance of the velocities that it compares.
    fn guidance(&self) -> Option<Guidance> {
        None
    }

    /// How far a ratio can be from 1 before it is clipped, of methods that clip, and the keys that say so.
    fn clip_range(&self) -> Option<(f64, &'static str)> {
        None
    }

    /// The guidance of the reference's velocity alone, for methods that compare the others without.
    fn reference_guidance(&self) -> Option<f32> {
        None
    }

    /// The differences whose products the loss of `points` is made of.
    fn differences(&self, points: &[Point]) -> Vec<Difference>;

    /// The loss of `points`, which are some of `total`. The other velocities, the points and the advantages are constants.
    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss;

    /// How the other slots follow the trained one after optimiser step `update`, counted from 0.
    fn follow(&self, bank: &mut AdapterBank, update: u64);
}

/// The method that `config` names, with its settings, for rollouts on `schedule` of images of `tokens`.
///
/// # Errors
/// If the config has no settings for it, or the schedule no such rollout.
pub fn build(config: &TrainConfig, schedule: &Schedule, tokens: usize) -> Result<Box<dyn Algorithm>> {
    let steps = config.rollout.num_inference_steps;
    Ok(match config.method()? {
        MethodKeys::Ram(keys) => Box::new(Ram::new(&keys, schedule, steps, tokens)?),
        MethodKeys::Awm(keys) => Box::new(Awm::new(&keys, schedule, steps, tokens)?),
        MethodKeys::Grpo(keys) => Box::new(Grpo::new(&keys, config, schedule, tokens)?),
        MethodKeys::Nft(keys) => Box::new(Nft::new(&keys, schedule, steps, tokens)?),
        MethodKeys::Rsm(keys) => Box::new(Rsm::new(&keys, config, schedule, tokens)?),
        MethodKeys::RsmFirstOrder(keys) => Box::new(RsmFirstOrder::new(&keys, config, schedule, tokens)?),
        MethodKeys::Sft(keys) => Box::new(Sft::new(&keys, config.algorithm, schedule, steps, tokens)?),
        MethodKeys::Dpo(keys) => Box::new(Dpo::new(&keys, config.algorithm, schedule, steps, tokens)?),
        MethodKeys::Dgpo(keys) => Box::new(Dgpo::new(&keys, schedule, steps, tokens)?),
        MethodKeys::Crd(keys) => Box::new(Crd::new(&keys, schedule, steps, tokens)?),
    })
}

/// Fails unless images that are sampled with other `weights` than are trained are something that `algorithm` can learn from.
///
/// # Errors
/// Says why not.
pub fn check_rollout(algorithm: &dyn Algorithm, weights: Sampled) -> Result<()> {
    ensure!(
        weights == Sampled::Stored || algorithm.rollout_is_data(),
        "rollout.weights is 'fp8', but '{}' weighs each image by how much likelier the trained policy makes it than the one that \
         sampled it: the ratio would compare two different models; set it to 'stored'",
        algorithm.name()
    );
    Ok(())
}

/// Fails if `noise`, the largest `|ρ − 1|` of a policy that has not changed since it sampled, is not less than what `algorithm`
/// clips at.
///
/// # Errors
/// Says both numbers.
pub fn check_ratio_noise(algorithm: &dyn Algorithm, noise: f64) -> Result<()> {
    let Some((range, keys)) = algorithm.clip_range().filter(|(range, _)| noise > 0.0 && noise >= *range) else {
        return Ok(());
    };
    bail!(
        "{}.{keys}: ratios are clipped at {range:e} from 1, and those of a policy that has not changed yet are already \
         {noise:.1e} from it, which is what rollout and training differ by; expected a range above that, or \
         train.compute = \"f32\"",
        algorithm.name()
    )
}

/// Whether the loss of `algorithm` looks at a guided velocity.
pub fn is_guided(algorithm: &dyn Algorithm) -> bool {
    algorithm.guidance().is_some() || algorithm.reference_guidance().is_some()
}

/// The products of which the loss of `points` is made; `operand` gives the tensors, one row per point.
pub fn compare<'a>(
    algorithm: &dyn Algorithm,
    points: &[Point],
    operand: impl Fn(Operand) -> &'a Tensor,
) -> Vec<Products> {
    let differences = algorithm.differences(points);
    products::forward(&with_tensors(&differences, operand))
}

/// The gradient of `loss`, which is that of `points`, to the trained policy's velocity times `scale`; `operand` gives the tensors,
/// one row per point.
pub fn gradient<'a>(
    algorithm: &dyn Algorithm,
    points: &[Point],
    operand: impl Fn(Operand) -> &'a Tensor,
    loss: &Loss,
    scale: f64,
) -> Tensor {
    let differences = algorithm.differences(points);
    let differences = with_tensors(&differences, operand);
    let times = |factor: f64| {
        let scaled = |c: &Vec<f64>| c.iter().map(|c| c * factor * scale).collect();
        combine::forward(&differences, &loss.coefficients.iter().map(scaled).collect::<Vec<_>>())
    };
    match algorithm.guidance() {
        None => times(1.0),
        // v = (1 − g)·u + g·c, the unconditional half first.
        Some(Guidance { scale: g, trains_unconditional }) => {
            let unconditional = if trains_unconditional { 1.0 - f64::from(g) } else { 0.0 };
            copy::concat(&[&times(unconditional), &times(g.into())])
        }
    }
}

/// `differences` as the ops take them.
fn with_tensors<'d, 'a: 'd>(
    differences: &'d [Difference],
    operand: impl Fn(Operand) -> &'a Tensor,
) -> Vec<products::Difference<'d>> {
    let terms = |d: &'d Difference| d.terms.iter().map(|(w, of)| (w.weights(), operand(*of))).collect();
    differences.iter().map(|d| products::Difference { terms: terms(d) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::method::RamKeys;

    /// A method that weighs images by how likely its policies make them, the rest of which does not matter here.
    struct Ratio(Ram);

    impl Algorithm for Ratio {
        fn name(&self) -> &'static str {
            "ratio"
        }

        fn rollout(&self, updates: u64) -> Slot {
            self.0.rollout(updates)
        }

        fn rollout_is_data(&self) -> bool {
            false
        }

        fn slots(&self) -> &'static [Slot] {
            self.0.slots()
        }

        fn needs(&self) -> Needs {
            self.0.needs()
        }

        fn advantage_eps(&self) -> f64 {
            self.0.advantage_eps()
        }

        fn points_per_image(&self) -> usize {
            self.0.points_per_image()
        }

        fn updates_per_epoch(&self) -> usize {
            self.0.updates_per_epoch()
        }

        fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
            self.0.updates(epoch)
        }

        fn differences(&self, points: &[Point]) -> Vec<Difference> {
            self.0.differences(points)
        }

        fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
            self.0.loss(points, products, total)
        }

        fn follow(&self, bank: &mut AdapterBank, update: u64) {
            self.0.follow(bank, update);
        }
    }

    #[test]
    fn fp8_rollouts_are_for_methods_to_which_images_are_data() {
        let ram = || Ram::new(&RamKeys::published(1.0), &Schedule::with_shift(3.0), 4, 16).unwrap();
        for weights in [Sampled::Stored, Sampled::Fp8] {
            check_rollout(&ram(), weights).unwrap();
        }
        check_rollout(&Ratio(ram()), Sampled::Stored).unwrap();
        let e = check_rollout(&Ratio(ram()), Sampled::Fp8).unwrap_err().to_string();
        assert!(e.starts_with("rollout.weights is 'fp8', but 'ratio' weighs each image by"), "{e}");
        assert!(e.ends_with("the ratio would compare two different models; set it to 'stored'"), "{e}");
    }
}
