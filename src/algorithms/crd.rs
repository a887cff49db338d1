//! Centred Reward Distillation (arXiv 2603.14128): the implicit reward of the trained policy over a lagged one is brought to the
//! reward, both centred in the group of a prompt.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::logistic::{sigmoid, softplus};
use super::strata::Strata;
use super::together::{Draws, Noise, units};
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{CrdKeys, CrdLoss};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// The least of an adaptive weight.
const LEAST: f64 = 1e-5;

/// What the distance to the reference weighs at the worst images, where it depends on them.
const LEAST_KL: f64 = 1e-4;

/// `L = mean (m/β)·ℓ(β·r^c, R^c) + λ·q·‖v_θ − v_ref‖²` with the implicit reward
/// `r = −(‖v_θ − y‖²/w_θ − ‖v_old − y‖²/w_old)` and the reward `R`, from 0 to 1.
pub struct Crd {
    keys: CrdKeys,
    draws: Draws,
}

impl Crd {
    /// With the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &CrdKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let draws = Draws { times: Strata::new(keys.times(), schedule, steps, tokens)?, noise: Noise::Own };
        Ok(Self { keys: keys.clone(), draws })
    }

    /// The reward of an image of advantage `a`, from 0 to 1.
    fn reward(&self, a: f64) -> f64 {
        let most = self.keys.advantage_clip;
        a.clamp(-most, most) / (2.0 * most) + 0.5
    }

    /// The weights of each mean that `rewards` of a group are centred by.
    fn centres(&self, rewards: &[f64]) -> Vec<Vec<f64>> {
        let temperature = self.keys.temperature;
        let uniform = || vec![1.0 / rewards.len() as f64; rewards.len()];
        if temperature < 0.0 {
            return vec![uniform()];
        }
        let pool = |sign: f64| {
            let is_in = |r: f64| temperature > 0.0 || sign * r > 0.0;
            let scale = if temperature > 0.0 { sign / temperature } else { 1.0 };
            let most = rewards.iter().map(|r| scale * r).fold(f64::NEG_INFINITY, f64::max);
            let weights = rewards.iter().map(|r| if is_in(*r) { (scale * r - most).exp() } else { 0.0 });
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            if sum > 0.0 { weights.iter().map(|w| w / sum).collect() } else { uniform() }
        };
        vec![pool(1.0), pool(-1.0)]
    }

    /// How far the implicit reward is from the reward, and the slope over it.
    fn distance(&self, implicit: f64, reward: f64) -> (f64, f64) {
        let (x, beta) = (self.keys.beta * implicit, self.keys.beta);
        match self.keys.loss {
            CrdLoss::Mse => ((x - reward).powi(2), 2.0 * beta * (x - reward)),
            CrdLoss::Bce => (softplus(x) - sigmoid(reward) * x, beta * (sigmoid(x) - sigmoid(reward))),
        }
    }

    /// What the distance to the reference is times at an image of reward `reward`.
    fn kl(&self, reward: f64) -> f64 {
        let weight = self.keys.kl_weight;
        if !self.keys.adaptive_kl || weight == 0.0 {
            return weight;
        }
        let least = (LEAST_KL / weight).min(1.0);
        weight * (least + reward * (1.0 - least))
    }
}

impl Algorithm for Crd {
    fn name(&self) -> &'static str {
        "crd"
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Sampling
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[Slot::Old, Slot::Sampling]
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.keys.kl_weight > 0.0, old: true, ..Needs::default() }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_timesteps
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// The groups are shared out to the updates, each at all of its times.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        self.draws.of_groups(epoch, self.keys.num_timesteps, self.keys.updates_per_epoch)
    }

    fn reference_guidance(&self) -> Option<f32> {
        (self.needs().reference && self.keys.kl_guidance_scale > 1.0).then_some(self.keys.kl_guidance_scale)
    }

    /// `θ − y`, `old − y`, and where it has weight `θ − ref`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let reference = self.needs().reference.then(|| Difference::from(Operand::Reference));
        [Operand::Theta, Operand::Old].map(Difference::mismatch).into_iter().chain(reference).collect()
    }

    /// Neither the weights `w` nor the means that are taken away carry a gradient.
    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let (share, keys) = (1.0 / total as f64, &self.keys);
        let scale = share * keys.advantage_clip / keys.beta;
        let anchors = usize::from(self.needs().reference);
        let mut loss = Loss { coefficients: vec![vec![0.0; points.len()]; 2 + anchors], ..Loss::default() };
        let weight = |i: usize, of: usize| if keys.adaptive { products[i].l1[of].max(LEAST) } else { 1.0 };
        for group in units(points) {
            let rewards: Vec<f64> = group.iter().map(|i| self.reward(points[*i].advantage)).collect();
            let implicit = |i: &usize| {
                let of = |which: usize| products[*i].gram[which][which] / weight(*i, which);
                of(1) - of(0)
            };
            let implicit: Vec<f64> = group.iter().map(implicit).collect();
            let centres = self.centres(&rewards);
            for weights in &centres {
                let mean = |x: &[f64]| -> f64 { x.iter().zip(weights).map(|(x, w)| x * w).sum() };
                let (middle, reward_middle) = (mean(&implicit), mean(&rewards));
                for (k, i) in group.iter().enumerate() {
                    let (value, slope) = self.distance(implicit[k] - middle, rewards[k] - reward_middle);
                    loss.value += scale * value / centres.len() as f64;
                    loss.coefficients[0][*i] -= 2.0 * scale * slope / centres.len() as f64 / weight(*i, 0);
                }
            }
            for (reward, i) in rewards.iter().zip(&group).filter(|_| anchors > 0) {
                let kl = share * self.kl(*reward);
                loss.value += kl * products[*i].gram[2][2];
                loss.coefficients[2][*i] = 2.0 * kl;
            }
        }
        loss
    }

    /// Once an epoch.
    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        if !(update + 1).is_multiple_of(self.keys.updates_per_epoch as u64) {
            return;
        }
        for (slot, decay) in [(Slot::Old, self.keys.old_decay), (Slot::Sampling, self.keys.sampling_decay)] {
            let (follower, theta) = bank.pair_mut(slot, Slot::Theta);
            lerp::forward(follower, theta, decay.after(update + 1));
        }
    }
}
