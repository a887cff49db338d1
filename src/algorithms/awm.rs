//! Advantage-Weighted Matching (Xue et al., arXiv 2509.25050): a policy gradient whose log-probability is the matching error
//! of pretraining.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::strata::Strata;
use super::surrogate::{Clip, Surrogate};
use super::together::units;
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{AwmKeys, KlForm, LossType, TimeType, Times, Weighting};
use crate::device::philox::Purpose;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// Keeps roots and their slopes finite.
const LEAST: f64 = 1e-10;

/// `L = mean P(A, ρ) + β·w·‖v_θ − v_ref‖² + β_ema·w'·‖v_θ − v_old‖²` with PPO's `P` and `ρ = exp(logp_θ − logp)`.
pub struct Awm {
    keys: AwmKeys,
    times: Strata,
}

impl Awm {
    /// With the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &AwmKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let levels = schedule.levels(steps, tokens)?;
        let last = ((steps as f64 * keys.timestep_fraction) as usize).clamp(1, levels.len());
        // What is uniform is so from 0.2 on.
        let range = [0.0, if keys.time_type == TimeType::Uniform { 0.8 } else { 1.0 }];
        let times = Times { time_type: keys.time_type, count: keys.num_timesteps, range };
        Ok(Self { keys: keys.clone(), times: Strata::within(times, levels, 0..last, schedule) })
    }

    /// The advantage as the loss takes it.
    fn clamped(&self, a: f64) -> f64 {
        let most = self.keys.advantage_clip;
        a.clamp(-most, most) / most * self.keys.advantage_max
    }

    /// The log-probability of matching error `l` at time `t`, and its slope over `l`.
    fn log_prob(&self, l: f64, t: f64) -> (f64, f64) {
        let (near, p) = (l + LEAST, self.keys.ghuber_power);
        match self.keys.weighting {
            Weighting::Uniform => (-l, -1.0),
            Weighting::T => (-t * l, -t),
            Weighting::T2 => (-t * t * l, -t * t),
            Weighting::Huber => (-(near.sqrt() - LEAST.sqrt()) * t, -t / (2.0 * near.sqrt())),
            Weighting::Ghuber => (-(near.powf(p) - LEAST.powf(p)) * t / p, -t * near.powf(p - 1.0)),
        }
    }

    fn clip(&self) -> Clip {
        Clip { low: self.keys.clip_low, high: self.keys.clip_high }
    }
}

impl KlForm {
    /// The weight at time `t`.
    fn at(self, t: f64) -> f64 {
        match self {
            Self::Uniform => 1.0,
            Self::Elbo => 1.0 / (2.0 * 0.49 * t / (1.0 - t.min(0.99))),
        }
    }
}

impl Algorithm for Awm {
    fn name(&self) -> &'static str {
        "awm"
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Theta
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[Slot::Old]
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.keys.kl_weight > 0.0, old: self.keys.ema_kl_weight > 0.0, ..Needs::default() }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_timesteps
    }

    fn updates_per_epoch(&self) -> usize {
        1
    }

    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let of_image = |image: usize| {
            let times = self.times.draw(&mut (epoch.key)(Purpose::Timestep, image, 0).stream());
            let point = move |(draw, t): (usize, f32)| {
                let noise = (epoch.key)(Purpose::ForwardNoise, image, draw as u32);
                let together = (self.keys.loss_type == LossType::SumFirst).then_some(image);
                Point { noise, together, ..Point::new(image, t, epoch.advantages[image]) }
            };
            times.into_iter().enumerate().map(point)
        };
        vec![(0..epoch.advantages.len()).flat_map(of_image).collect()]
    }

    /// `θ − y`, and where they have weight `θ − ref` and `θ − old`.
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let matched = Difference::mismatch(Operand::Theta);
        let Needs { reference, old, .. } = self.needs();
        let anchors =
            [reference.then(|| Difference::from(Operand::Reference)), old.then(|| Difference::from(Operand::Old))];
        std::iter::once(matched).chain(anchors.into_iter().flatten()).collect()
    }

    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let share = 1.0 / total as f64;
        let rows: Vec<(f64, f64)> =
            points.iter().zip(products).map(|(p, of)| self.log_prob(of.gram[0][0], p.t.into())).collect();
        // On policy the behaviour's log-probability is the policy's own.
        let log_ratio = |i: usize| points[i].log_prob_old.map_or(0.0, |old| rows[i].0 - old);
        let mut ratios: Vec<f64> = (0..points.len()).map(log_ratio).collect();
        if self.keys.loss_type == LossType::SumFirst {
            for image in units(points) {
                let mean = image.iter().map(|i| ratios[*i]).sum::<f64>() / image.len() as f64;
                image.into_iter().for_each(|i| ratios[i] = mean);
            }
        }
        let Needs { reference, old, .. } = self.needs();
        let (kl, ema) = (
            reference.then_some((self.keys.kl_weight, self.keys.kl_form)),
            old.then_some((self.keys.ema_kl_weight, self.keys.ema_kl_form)),
        );
        let anchors: Vec<(f64, KlForm)> = [kl, ema].into_iter().flatten().collect();
        let mut loss = Loss { coefficients: vec![Vec::new(); 1 + anchors.len()], ..Loss::default() };
        for (i, (point, Products { gram, .. })) in points.iter().zip(products).enumerate() {
            let Surrogate { value, slope } = self.clip().surrogate(self.clamped(point.advantage), ratios[i]);
            loss.value += share * value;
            loss.ratios.push(ratios[i].exp());
            loss.clipped += usize::from(slope == 0.0 && point.advantage != 0.0);
            loss.coefficients[0].push(share * 2.0 * slope * rows[i].1);
            for (k, (weight, form)) in anchors.iter().enumerate() {
                let weight = weight * form.at(point.t.into());
                loss.value += share * weight * gram[k + 1][k + 1];
                loss.coefficients[k + 1].push(share * 2.0 * weight);
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
