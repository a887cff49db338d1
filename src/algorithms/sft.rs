//! Supervised fine-tuning on the policy's own images, as flow_grpo has it: on the best of each prompt (SFT; OnlineSFT where the
//! policy that samples follows), or on all of them by their rewards (reward-weighted regression, RWR).

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::advantage::{self, Advantages};
use super::strata::Strata;
use super::together::{Draws, Noise};
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{Method, SftKeys};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// After so many optimiser steps the policy that samples follows, where nothing else is said.
const ONLINE: u64 = 40;

/// `L = mean A·‖v_θ − y‖²` with `y = noise − x0`; A is 1 for the best images of a prompt, or the reward.
pub struct Sft {
    keys: SftKeys,
    method: Method,
    draws: Draws,
}

impl Sft {
    /// `method` with the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &SftKeys, method: Method, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let draws = Draws { times: Strata::new(keys.times(), schedule, steps, tokens)?, noise: Noise::Own };
        Ok(Self { keys: keys.clone(), method, draws })
    }
}

/// 1 for the largest of `rewards`, also if there are several, and 0 for the others.
fn best(rewards: &[f64]) -> Vec<f64> {
    let most = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    rewards.iter().map(|r| f64::from(u8::from(*r == most))).collect()
}

/// Makes the reference of `bank` the trained policy if `update` is the last of `every` optimiser steps.
pub(super) fn follow_every(every: Option<u64>, bank: &mut AdapterBank, update: u64) {
    if every.is_some_and(|every| (update + 1).is_multiple_of(every)) {
        let (reference, theta) = bank.pair_mut(Slot::Reference, Slot::Theta);
        lerp::forward(reference, theta, 0.0);
    }
}

/// After how many optimiser steps the reference of `method` follows.
pub(super) fn reference_follows(method: Method, said: Option<u64>) -> Option<u64> {
    match method {
        Method::OnlineSft | Method::OnlineDpo => Some(said.unwrap_or(ONLINE)),
        _ => said,
    }
}

impl Algorithm for Sft {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Reference
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[Slot::Reference]
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn advantages(&self, rewards: &[f64], group: &[&str]) -> Advantages {
        let choose = if self.method == Method::Rwr { <[f64]>::to_vec } else { best };
        advantage::chosen(rewards, group, self.keys.skip_equal_groups, choose)
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_timesteps
    }

    fn chosen(&self, images: usize) -> usize {
        if self.method == Method::Rwr { images } else { 1 }
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// All chosen images at each update's share of the times.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let images: Vec<Vec<usize>> =
            (0..epoch.advantages.len()).filter(|i| epoch.advantages[*i] != 0.0).map(|i| vec![i]).collect();
        self.draws.of_units(epoch, &images, self.keys.num_timesteps, self.keys.updates_per_epoch)
    }

    /// `θ − y`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        vec![Difference::mismatch(Operand::Theta)]
    }

    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let share = 1.0 / total as f64;
        let matched = points.iter().zip(products).map(|(p, of)| share * p.advantage * of.gram[0][0]);
        let coefficients = points.iter().map(|p| 2.0 * share * p.advantage).collect();
        Loss { value: matched.sum(), coefficients: vec![coefficients], ..Loss::default() }
    }

    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        follow_every(reference_follows(self.method, self.keys.ref_update_step), bank, update);
    }
}
