//! Direct Group Preference Optimisation (Luo et al., arXiv 2510.08425): matching weighed by advantage, less where a whole group is
//! already better than under the reference.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::dpo::excess;
use super::logistic::sigmoid;
use super::strata::Strata;
use super::together::{Draws, Noise, units};
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{DgpoKeys, GroupReference};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// `L = mean w_g·A·‖v_θ − y‖² + λ·‖v_θ − v_ref‖²` with `w_g = σ((β/G)·Σ_group A·(‖v_θ − y‖² − ‖v_ref' − y‖²))`, a constant.
pub struct Dgpo {
    keys: DgpoKeys,
    draws: Draws,
}

impl Dgpo {
    /// With the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &DgpoKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let draws = Draws { times: Strata::new(keys.times(), schedule, steps, tokens)?, noise: Noise::OfUnit };
        Ok(Self { keys: keys.clone(), draws })
    }

    /// Whether an image of advantage `a` still pulls at ratio `ratio` to the lagged policy.
    fn is_inside(&self, a: f64, ratio: f64) -> bool {
        if a > 0.0 { ratio <= 1.0 + self.keys.clip_high } else { ratio >= 1.0 - self.keys.clip_low }
    }

    /// Where among the differences those to the reference and to the lagged policy are.
    fn places(&self) -> [Option<usize>; 2] {
        let Needs { reference, old, .. } = self.needs();
        [reference.then_some(1), old.then_some(1 + usize::from(reference))]
    }
}

impl Algorithm for Dgpo {
    fn name(&self) -> &'static str {
        "dgpo"
    }

    fn rollout(&self, updates: u64) -> Slot {
        let switch = self.keys.switch_ema_ref;
        if switch > 0 && updates > switch { Slot::Old } else { Slot::Theta }
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[Slot::Old]
    }

    fn needs(&self) -> Needs {
        let compares_with_old = self.keys.reference == GroupReference::Old;
        Needs {
            reference: !compares_with_old || self.keys.kl_weight > 0.0,
            old: compares_with_old || self.keys.clip || self.keys.clip_kl,
            ..Needs::default()
        }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_timesteps
    }

    fn compares_with_rollout(&self) -> bool {
        false
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// The groups are shared out to the updates, each at all of its times; all its points have one noise.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        self.draws.of_groups(epoch, self.keys.num_timesteps, self.keys.updates_per_epoch)
    }

    fn reference_guidance(&self) -> Option<f32> {
        (self.needs().reference && self.keys.kl_guidance_scale > 1.0).then_some(self.keys.kl_guidance_scale)
    }

    /// `θ − y`, and where they are needed `θ − ref` and `θ − old`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let matched = Difference::mismatch(Operand::Theta);
        let [reference, old] = self.places();
        let others =
            [reference.map(|_| Difference::from(Operand::Reference)), old.map(|_| Difference::from(Operand::Old))];
        std::iter::once(matched).chain(others.into_iter().flatten()).collect()
    }

    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let (share, keys) = (1.0 / total as f64, &self.keys);
        let [reference, old] = self.places();
        let compared = match keys.reference {
            GroupReference::Base => reference,
            GroupReference::Old => old,
        };
        let compared = compared.expect("what it compares with is needed");
        let advantage = |i: usize| points[i].advantage.clamp(-keys.advantage_clip, keys.advantage_clip);
        let differences = 1 + reference.iter().chain(&old).count();
        let mut loss = Loss { coefficients: vec![vec![0.0; points.len()]; differences], ..Loss::default() };
        let is_clipped = keys.clip || keys.clip_kl;
        loss.ratios = if is_clipped { vec![1.0; points.len()] } else { Vec::new() };
        for group in units(points) {
            let better: f64 = group.iter().map(|i| advantage(*i) * excess(&products[*i], compared, 0)).sum();
            let weight = sigmoid(keys.beta / group.len() as f64 * better);
            for i in group {
                let (a, gram) = (advantage(i), products[i].gram);
                let mut inside = true;
                if let Some(old) = old.filter(|_| is_clipped) {
                    loss.ratios[i] = (-excess(&products[i], old, 0)).exp();
                    inside = self.is_inside(a, loss.ratios[i]);
                    loss.clipped += usize::from(!inside);
                }
                let pulls = |clip: bool| if clip && !inside { 0.0 } else { 1.0 };
                loss.value += share * weight * a * gram[0][0];
                loss.coefficients[0][i] = 2.0 * share * weight * a * pulls(keys.clip);
                if let Some(reference) = reference {
                    loss.value += share * keys.kl_weight * gram[reference][reference];
                    loss.coefficients[reference][i] = 2.0 * share * keys.kl_weight * pulls(keys.clip_kl);
                }
            }
        }
        loss
    }

    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        let decay = (self.keys.ema_decay_rate * update as f32).min(self.keys.ema_decay_max);
        let (old, theta) = bank.pair_mut(Slot::Old, Slot::Theta);
        lerp::forward(old, theta, decay);
    }
}
