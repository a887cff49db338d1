//! DiffusionNFT (Zheng et al., arXiv 2509.16117): the velocity of good images is matched by a policy on one side of the lagged
//! one, that of bad images by its mirror image on the other.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::together::shares;
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{AdvantageMode, Decay, NftKeys};
use crate::device::philox::Purpose;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// The least of an adaptive weight.
const LEAST: f64 = 1e-5;

/// `L = mean (m/β)·(r·L⁺ + (1 − r)·L⁻) + λ·‖v_θ − v_ref‖²` with `L± = ‖x̂0± − x0‖²/w±` of `v± = v_old ± β·(v_θ − v_old)`.
pub struct Nft {
    keys: NftKeys,
    /// The noise levels of the rollout.
    times: Vec<f32>,
}

impl Nft {
    /// With the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &NftKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        Ok(Self { keys: keys.clone(), times: schedule.levels(steps, tokens)? })
    }

    /// How likely an image of advantage `a` is a good one.
    fn optimality(&self, a: f64) -> f64 {
        let (a, most) = (a.clamp(-self.keys.advantage_clip, self.keys.advantage_clip), self.keys.advantage_clip);
        let a = match self.keys.advantage_mode {
            AdvantageMode::All => a,
            AdvantageMode::PositiveOnly => a.max(0.0),
            AdvantageMode::NegativeOnly => a.min(0.0),
            AdvantageMode::OneOnly => f64::from(u8::from(a > 0.0)),
            AdvantageMode::Binary if a == 0.0 => 0.0,
            AdvantageMode::Binary => a.signum(),
        };
        (a / most / 2.0 + 0.5).clamp(0.0, 1.0)
    }
}

impl Decay {
    /// What survives after `n` optimiser steps.
    fn after(self, n: u64) -> f32 {
        let n = n as f32;
        match self {
            Self::None => 0.0,
            Self::Slow => (1e-3 * n).min(0.5),
            Self::Late => (7.5e-3 * (n - 75.0)).clamp(0.0, 0.999),
        }
    }
}

impl Algorithm for Nft {
    fn name(&self) -> &'static str {
        "nft"
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Old
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[Slot::Old]
    }

    fn needs(&self) -> Needs {
        Needs { reference: true, old: true, ..Needs::default() }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        ((self.times.len() as f64 * self.keys.timestep_fraction) as usize).max(1)
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// Each image at the first of its own permutation of the rollout's noise levels; its images are shared out to the updates.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let count = epoch.advantages.len();
        let of_image = |image: usize| {
            let mut times = self.times.clone();
            (epoch.key)(Purpose::Timestep, image, 0).stream().shuffle(&mut times);
            let point = move |(draw, t): (usize, f32)| {
                let noise = (epoch.key)(Purpose::ForwardNoise, image, draw as u32);
                Point { noise, ..Point::new(image, t, epoch.advantages[image]) }
            };
            times.into_iter().take(self.points_per_image()).enumerate().map(point)
        };
        shares(count, self.keys.updates_per_epoch).map(|share| share.flat_map(of_image).collect()).collect()
    }

    /// `e± = ±β·θ + (1 ∓ β)·old − y` and `θ − ref`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let beta = self.keys.beta as f32;
        let matched = |sign: f32| {
            let own = [(sign * beta, Operand::Theta), (1.0 - sign * beta, Operand::Old)];
            Difference::signed(&[own[0], own[1], (-1.0, Operand::Noise), (1.0, Operand::X0)])
        };
        let reference = Difference::from(Operand::Reference);
        vec![matched(1.0), matched(-1.0), reference]
    }

    /// `x̂0± − x0 = −t·e±`; the weights `w± = t·|e±|₁` carry no gradient.
    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let (share, m) = (1.0 / total as f64, self.keys.advantage_clip);
        let (beta, kl) = (self.keys.beta, self.keys.kl_weight);
        let mut loss = Loss {
            coefficients: vec![Vec::new(), Vec::new(), vec![2.0 * kl * share; points.len()]],
            ..Loss::default()
        };
        for (point, Products { gram, l1 }) in points.iter().zip(products) {
            let (t, r) = (f64::from(point.t), self.optimality(point.advantage));
            for (i, (chance, sign)) in [(r, 1.0), (1.0 - r, -1.0)].into_iter().enumerate() {
                let scaled = m / beta * chance * t * t / (t * l1[i]).max(LEAST);
                loss.value += share * scaled * gram[i][i];
                loss.coefficients[i].push(share * 2.0 * scaled * sign * beta);
            }
            loss.value += share * kl * gram[2][2];
        }
        loss
    }

    /// Once an epoch.
    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        if (update + 1).is_multiple_of(self.keys.updates_per_epoch as u64) {
            let (old, theta) = bank.pair_mut(Slot::Old, Slot::Theta);
            lerp::forward(old, theta, self.keys.decay.after(update + 1));
        }
    }
}
