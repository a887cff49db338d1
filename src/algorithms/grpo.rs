//! Flow-GRPO (Liu et al., arXiv 2505.05470) and what differs from it by the sampler (CPS), by the steps that are trained on (Fast,
//! MixGRPO) or by the ratio (GRPO-Guard): PPO over the steps of a stochastic rollout.

#[cfg(test)]
mod tests;

use std::ops::Range;

use anyhow::{Result, bail, ensure};

use super::advantage::{Advantages, group_centered, group_normalised};
use super::steps::Steps;
use super::surrogate::Clip;
use super::together::shares;
use super::{Algorithm, Difference, Guidance, Loss, Needs, Operand, Point, Scored, Window};
use crate::config::TrainConfig;
use crate::config::method::{GrpoKeys, GuardGradBalance, KlType, Method, Std, WindowPlace};
use crate::device::philox::{Key, Purpose};
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::Products;
use crate::rollout::sampler::{Kind, Step};
use crate::rollout::schedule::Schedule;

/// CPS's noise can be as little as none.
const LEAST_VARIANCE: f64 = 1e-6;

/// `L = mean P(A, ρ) + β·KL` with PPO's `P` and `ρ = exp(logp_θ − logp)` of a step.
pub struct Grpo {
    keys: GrpoKeys,
    method: Method,
    sampler: Kind,
    steps: Steps,
    guidance: f32,
}

impl Grpo {
    /// With the settings of a config, for rollouts on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the sampler is not one that adds noise, or the schedule has no such rollout.
    pub fn new(keys: &GrpoKeys, config: &TrainConfig, schedule: &Schedule, tokens: usize) -> Result<Self> {
        let (method, rollout) = (config.algorithm, &config.rollout);
        let name = method.name();
        let fits = match method {
            Method::Cps => &[Kind::Cps][..],
            // Its ratio is that of a normal distribution.
            Method::GrpoGuard => &[Kind::Flow],
            _ => &[Kind::Flow, Kind::Cps, Kind::Dance],
        };
        let (steps, count) = (Steps::new(rollout, name, fits, schedule, tokens)?, rollout.num_inference_steps);
        ensure!(
            keys.window_size == 0 || keys.window_range[1] <= count,
            "{name}.window_range ends at {}, and rollout.num_inference_steps is {count}",
            keys.window_range[1]
        );
        let guidance = rollout.guidance_scale;
        let grpo = Self { keys: keys.clone(), method, sampler: rollout.sampler, steps, guidance };
        if let Some(step) = grpo.candidates().find(|i| grpo.steps.at(*i).log_prob.is_none()) {
            bail!("{name}: step {step} of the rollout adds no noise and cannot be trained on");
        }
        Ok(grpo)
    }

    /// The steps that may be trained on.
    fn candidates(&self) -> Range<usize> {
        match self.keys.window_size {
            0 => 0..self.most(),
            _ => self.keys.window_range[0]..self.keys.window_range[1],
        }
    }

    /// How many are trained on where there is no window.
    fn most(&self) -> usize {
        ((self.steps.all().len() as f64 * self.keys.timestep_fraction) as usize).max(1)
    }

    fn is_guard(&self) -> bool {
        self.method == Method::GrpoGuard
    }

    /// What `⟨θ − ref, θ − ref⟩` is times in the divergence at `step`.
    fn kl_factor(&self, step: usize) -> f64 {
        let Step { b, s, .. } = self.steps.at(step);
        let variance = match self.sampler {
            Kind::Cps => (s * s).max(LEAST_VARIANCE),
            _ => self.steps.variance(step, self.keys.kl_denominator),
        };
        match self.keys.kl_type {
            KlType::Gaussian => b * b / (2.0 * variance),
            KlType::X => b * b,
            KlType::V => 1.0,
        }
    }

    /// The logarithm of the ratio of a point, and what that changes by along the step's mean, over `θ`'s factor in it.
    fn log_ratio(&self, point: &Point, gram: &[[f64; 4]; 4]) -> f64 {
        let old = point.log_prob_old.expect("the rollout has recorded it");
        let change = self.steps.log_prob(point.step).of(gram[0][0]) - old;
        if !self.is_guard() {
            return change;
        }
        // Shi et al. 2025: without the mean that makes every ratio small, and of one scale at every step.
        let s = self.steps.at(point.step).s;
        s * (change + gram[1][1] / (2.0 * s * s))
    }
}

impl Algorithm for Grpo {
    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Theta
    }

    fn rollout_is_data(&self) -> bool {
        false
    }

    fn slots(&self) -> &'static [Slot] {
        &[]
    }

    fn needs(&self) -> Needs {
        Needs { reference: self.keys.kl_weight > 0.0, mean_old: self.is_guard(), ..Needs::default() }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn advantages(&self, rewards: &[f64], group: &[&str]) -> Advantages {
        match self.keys.std {
            Std::Global => group_centered(rewards, group, self.keys.advantage_eps),
            Std::Group => group_normalised(rewards, group, self.keys.advantage_eps),
        }
    }

    fn points_per_image(&self) -> usize {
        match self.keys.window_size {
            0 => self.most(),
            size => size,
        }
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// The images that are better or worse than others of their prompt, in an order of the epoch's own, shared out to the
    /// updates; each at all steps.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let count = epoch.advantages.len();
        let mut images: Vec<usize> = (0..count).filter(|i| epoch.advantages[*i] != 0.0).collect();
        (epoch.key)(Purpose::PointOrder, 0, 0).stream().shuffle(&mut images);
        let point = |image: usize, step: usize| Point {
            step,
            log_prob_old: epoch.log_prob(step, image),
            ..Point::new(image, self.steps.at(step).sigma, epoch.advantages[image])
        };
        let of_image = |image: &usize| epoch.steps.iter().map(|step| point(*image, *step)).collect::<Vec<_>>();
        let update = |share: Range<usize>| images[share].iter().flat_map(of_image).collect();
        shares(images.len(), self.keys.updates_per_epoch).map(update).collect()
    }

    fn window(&self, seed: u64, epoch: u32) -> Option<Window> {
        let size = self.keys.window_size;
        if size == 0 {
            return Some(Window::new(0..self.steps.all().len(), self.candidates()));
        }
        let [first, end] = self.keys.window_range;
        let places = (end - first - size + 1) as u32;
        let mut stream = Key { epoch, ..Key::new(seed, Purpose::Window) }.stream();
        let from = |place: u32| (first + place as usize..).take(size).collect();
        let steps: Vec<usize> = match self.keys.window_place {
            WindowPlace::Random => from(stream.below(places)),
            // Epochs are counted from 1.
            WindowPlace::Progressive => from(epoch.saturating_sub(1) / self.keys.window_interval % places),
            WindowPlace::Scattered => {
                let mut all: Vec<usize> = (first..end).collect();
                stream.shuffle(&mut all);
                all.truncate(size);
                all.sort_unstable();
                all
            }
        };
        Some(Window { noisy: steps.clone(), trained: steps })
    }

    fn clip_range(&self) -> Option<(f64, &'static str)> {
        Some((self.keys.clip_low.min(self.keys.clip_high), "clip_low and clip_high"))
    }

    fn guidance(&self) -> Option<Guidance> {
        let trains_unconditional = self.keys.cfg_uncond_grad;
        (self.guidance > 1.0).then_some(Guidance { scale: self.guidance, trains_unconditional })
    }

    /// The mean of the step less the sample after it, in the order that the step itself takes; for the guard, the mean less
    /// that of the policy that sampled; and `θ − ref`.
    fn differences(&self, points: &[Point]) -> Vec<Difference> {
        let mut all = vec![self.steps.mean_less(points, Operand::Next)];
        all.extend(self.is_guard().then(|| self.steps.mean_less(points, Operand::MeanOld)));
        all.extend(self.needs().reference.then(|| Difference::from(Operand::Reference)));
        all
    }

    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let share = 1.0 / total as f64;
        let anchor = 1 + usize::from(self.is_guard());
        let mut loss =
            Loss { coefficients: vec![Vec::new(); anchor + usize::from(self.needs().reference)], ..Loss::default() };
        let clip = Clip { low: self.keys.clip_low, high: self.keys.clip_high };
        for (point, Products { gram, .. }) in points.iter().zip(products) {
            let (Step { b, s, .. }, most) = (self.steps.at(point.step), self.keys.advantage_clip);
            let log_ratio = self.log_ratio(point, gram);
            let surrogate = clip.surrogate(point.advantage.clamp(-most, most), log_ratio);
            loss.ratios.push(log_ratio.exp());
            loss.clipped += usize::from(surrogate.slope == 0.0 && point.advantage != 0.0);
            if self.is_guard() {
                let balance = match self.keys.guard_grad_balance {
                    GuardGradBalance::InverseDt => 1.0 / self.steps.length(point.step),
                    GuardGradBalance::None => 1.0,
                };
                // Towards where the noise went from the old mean: free of the trained policy.
                let slope = share * surrogate.slope * balance * b / s;
                loss.value += share * surrogate.value * balance;
                loss.coefficients[0].push(-slope);
                loss.coefficients[1].push(slope);
            } else {
                let kappa = self.steps.log_prob(point.step).kappa;
                loss.value += share * surrogate.value;
                loss.coefficients[0].push(share * surrogate.slope * -2.0 * kappa * b);
            }
            if let Some(anchors) = loss.coefficients.get_mut(anchor) {
                let weight = self.keys.kl_weight * self.kl_factor(point.step);
                loss.value += share * weight * gram[anchor][anchor];
                anchors.push(share * 2.0 * weight);
            }
        }
        loss
    }

    fn follow(&self, _: &mut AdapterBank, _: u64) {}
}
