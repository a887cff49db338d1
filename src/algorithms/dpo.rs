//! Diffusion-DPO (Wallace et al., arXiv 2311.12908) on the best and the worst of a policy's own images of each prompt, as flow_grpo
//! has it, and OnlineDPO, where the reference, which samples them, follows.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::advantage::{self, Advantages};
use super::logistic::{sigmoid, softplus};
use super::sft::{follow_every, reference_follows};
use super::strata::Strata;
use super::together::{Draws, Noise, groups, units};
use super::{Algorithm, Difference, Loss, Needs, Operand, Pairs, Point, Scored};
use crate::config::method::{DpoKeys, Method};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// `L = mean over pairs of −ln σ(−½β·(E_w − E_l))` with `E = ‖v_θ − y‖² − ‖v_ref − y‖²` at the same noise and time.
pub struct Dpo {
    keys: DpoKeys,
    method: Method,
    draws: Draws,
}

impl Dpo {
    /// `method` with the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &DpoKeys, method: Method, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let draws = Draws { times: Strata::new(keys.times(), schedule, steps, tokens)?, noise: Noise::OfTime };
        Ok(Self { keys: keys.clone(), method, draws })
    }
}

/// 1 for the first of the largest of `rewards`, −1 for the first of the smallest, 0 for the others. Where all are equal the second
/// is taken for better than the first, as the published code has it.
fn extremes(rewards: &[f64]) -> Vec<f64> {
    let first = |is_before: fn(&f64, &f64) -> bool| {
        (1..rewards.len()).fold(0, |at, i| if is_before(&rewards[i], &rewards[at]) { i } else { at })
    };
    let (most, least) = (first(|a, b| a > b), first(|a, b| a < b));
    let most = if most == least { 1 } else { most };
    (0..rewards.len()).map(|i| f64::from(i8::from(i == most) - i8::from(i == least))).collect()
}

/// `‖d + p‖² − ‖p‖²` where `d` and `d + p` are the differences numbered `d` and `whole`: exact also where `d` is small.
pub(super) fn excess(of: &Products, d: usize, whole: usize) -> f64 {
    2.0 * of.gram[d][whole] - of.gram[d][d]
}

impl Algorithm for Dpo {
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
        Needs { reference: true, ..Needs::default() }
    }

    fn advantages(&self, rewards: &[f64], group: &[&str]) -> Advantages {
        advantage::chosen(rewards, group, self.keys.skip_equal_groups, extremes)
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_timesteps
    }

    fn chosen(&self, _: usize) -> usize {
        2
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// All pairs at each update's share of the times, winners first.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let pair = |group: Vec<usize>| {
            let find = |sign: f64| group.iter().copied().find(|i| epoch.advantages[*i] == sign);
            Some(vec![find(1.0)?, find(-1.0)?])
        };
        let pairs: Vec<Vec<usize>> = groups(epoch).into_iter().filter_map(pair).collect();
        self.draws.of_units(epoch, &pairs, self.keys.num_timesteps, self.keys.updates_per_epoch)
    }

    /// `θ − y` and `θ − ref`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        vec![Difference::mismatch(Operand::Theta), Difference::from(Operand::Reference)]
    }

    /// The slope over `E` is `±½β·σ(½β(E_w − E_l))`, and that of `E` over the velocity `2·(θ − y)`.
    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let (share, beta) = (2.0 / total as f64, self.keys.beta);
        let mut loss = Loss { coefficients: vec![vec![0.0; points.len()]; 2], ..Loss::default() };
        for pair in units(points) {
            let of = |sign: f64| -> f64 {
                let those = pair.iter().filter(|i| sign * points[**i].advantage > 0.0);
                those.map(|i| points[*i].advantage.abs() * excess(&products[*i], 1, 0)).sum()
            };
            let (winner, loser) = (of(1.0), of(-1.0));
            let inside = winner - loser;
            loss.pairs += Pairs::one(winner, loser);
            loss.value += share * softplus(0.5 * beta * inside);
            for i in pair {
                loss.coefficients[0][i] = share * beta * points[i].advantage * sigmoid(0.5 * beta * inside);
            }
        }
        loss
    }

    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        follow_every(reference_follows(self.method, self.keys.ref_update_step), bank, update);
    }
}
