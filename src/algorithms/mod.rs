//! What makes one training method differ from another: at which points it trains, which policies' velocities it compares
//! there, and how the loss and its gradient follow from inner products of their differences. The rest (rollout, rewards,
//! forward and backward, optimiser) is shared.

pub mod advantage;
pub mod awm;
pub mod crd;
pub mod dgpo;
pub mod dpo;
pub mod grpo;
mod logistic;
pub mod nft;
pub mod point;
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
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::{self, Products};
use crate::ops::{combine, copy};
use crate::rollout::schedule::Schedule;

pub use awm::Awm;
pub use crd::Crd;
pub use dgpo::Dgpo;
pub use dpo::Dpo;
pub use grpo::Grpo;
pub use nft::Nft;
pub use point::{Difference, Guidance, Loss, Needs, Operand, Pairs, Point, Scored, Share, Weight, Window};
pub use ram::Ram;
pub use rsm::Rsm;
pub use rsm_first_order::RsmFirstOrder;
pub use sft::Sft;

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
