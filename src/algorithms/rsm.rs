//! Reward Score Matching (arXiv 2604.17415) without gradients of the reward: the noise of images that are better than others of
//! the same step is what the policy is matched to. Zeroth-order, for samples that branch or for whole stochastic trajectories.

#[cfg(test)]
mod tests;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, ensure};

use self::weights::{Matching, Ratio};
use super::advantage::{Advantages, group_centered, group_normalised};
use super::steps::Steps;
use super::surrogate::Clip;
use super::together::shares;
use super::{Algorithm, Difference, Guidance, Loss, Needs, Operand, Point, Scored, Share, Window};
use crate::config::method::{Reweight, RsmKeys, RsmLoss};
use crate::config::{Each, TrainConfig};
use crate::device::philox::Purpose;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::Products;
use crate::rollout::sampler::Kind;
use crate::rollout::schedule::Schedule;

/// `max(0, c·|A| + A·T)` or PPO's surrogate, weighed over the steps, plus a divergence from the reference.
pub struct Rsm {
    keys: RsmKeys,
    steps: Steps,
    /// How many forks of a trunk each trained step has; none for whole trajectories.
    forks: Vec<usize>,
    guidance: f32,
}

/// What the policy's part of a point's loss is.
struct Policy {
    value: f64,
    /// One per difference that it is made of.
    coefficients: Vec<f64>,
    /// How much likelier the trained policy makes the point.
    ratio: f64,
    /// Whether nothing pushes any further.
    is_closed: bool,
}

impl Rsm {
    /// With the settings of a config, for rollouts on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the sampler is not that of Flow-GRPO, the schedule has no such rollout, or the profile is for another number of steps.
    pub fn new(keys: &RsmKeys, config: &TrainConfig, schedule: &Schedule, tokens: usize) -> Result<Self> {
        let rollout = &config.rollout;
        let steps = Steps::new(rollout, "rsm", &[Kind::Flow], schedule, tokens)?;
        let count = rollout.num_inference_steps;
        ensure!(
            count >= 2,
            "rollout.num_inference_steps is {count}, and the last step is not trained on; expected at least 2 for 'rsm'"
        );
        let forks = keys.forks(count)?.unwrap_or_default();
        Ok(Self { keys: keys.clone(), steps, forks, guidance: rollout.guidance_scale })
    }

    /// How many steps may be trained on.
    fn most(&self) -> usize {
        self.steps.all().len() - 1
    }

    fn is_branched(&self) -> bool {
        !self.forks.is_empty()
    }

    /// The mean number of forks over the steps that have some, over that of `step`; none if that has no forks, which makes its
    /// points anchors.
    fn balance(&self, step: usize) -> Option<f64> {
        if !self.is_branched() {
            return Some(1.0);
        }
        let count = self.forks.get(step).copied().filter(|k| *k > 0)?;
        Some(self.mean_forks() / count as f64)
    }

    fn mean_forks(&self) -> f64 {
        if !self.is_branched() {
            return 1.0;
        }
        let active = self.forks.iter().filter(|k| **k > 0);
        active.clone().sum::<usize>() as f64 / active.count() as f64
    }

    /// The steps whose points only hold the policy to the reference.
    fn anchors(&self) -> Vec<usize> {
        let has = self.keys.anchors && self.needs().reference;
        (0..self.forks.len()).filter(|step| has && self.forks[*step] == 0).collect()
    }

    /// Those of `images` that are worth a forward: without a divergence, only images that are better or worse than others.
    fn worth(&self, advantages: &[f64]) -> Vec<usize> {
        let all = self.needs().reference;
        (0..advantages.len()).filter(|i| all || advantages[*i] != 0.0).collect()
    }

    /// `image` at `step`, which left where the epoch's noise says.
    fn point(&self, epoch: &Scored, image: usize, step: usize) -> Point {
        let (noise, log_prob_old) = match epoch.forks.get(image) {
            Some(fork) => ((epoch.key)(Purpose::ForkNoise, image, fork.draw()), epoch.log_probs.get(image).copied()),
            None => ((epoch.key)(Purpose::SamplerNoise, image, step as u32), epoch.log_prob(step, image)),
        };
        let point = Point::new(image, self.steps.at(step).sigma, epoch.advantages[image]);
        Point { noise, step, log_prob_old, ..point }
    }

    /// The points of an epoch in an order of its own: groups of those that stay in one optimiser step.
    fn points(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let mut images = self.worth(epoch.advantages);
        (epoch.key)(Purpose::PointOrder, 0, 0).stream().shuffle(&mut images);
        let of_image = |image: &usize| match epoch.forks.get(*image) {
            Some(fork) => vec![self.point(epoch, *image, fork.step)],
            None => epoch.steps.iter().map(|step| self.point(epoch, *image, *step)).collect(),
        };
        images.iter().map(of_image).collect()
    }

    /// The anchors of an epoch in an order of its own; any image of a trunk stands for it.
    fn anchor_points(&self, epoch: &Scored) -> Vec<Point> {
        let mut of_trunk = BTreeMap::new();
        for (image, fork) in epoch.forks.iter().enumerate() {
            of_trunk.entry(fork.trunk).or_insert(image);
        }
        let steps = self.anchors();
        let all = of_trunk.values().flat_map(|image| steps.iter().map(move |step| (*image, *step)));
        let mut anchors: Vec<Point> =
            all.map(|(image, step)| Point { advantage: 0.0, ..self.point(epoch, image, step) }).collect();
        (epoch.key)(Purpose::PointOrder, 0, 1).stream().shuffle(&mut anchors);
        anchors
    }

    /// `max(0, c·|A| + A·T)`: nothing is left to do once the log-ratio has gone `c` the way of the advantage.
    fn matched(&self, point: &Point, a: f64, gram: &[[f64; 4]; 4]) -> Policy {
        let step = self.steps.at(point.step);
        let Matching { w, second, pre, post } =
            weights::matching(self.keys.reweight, step, self.steps.length(point.step));
        let terms = |w: f64, second: f64| second * 0.5 * w * w * gram[0][0] + w * gram[0][1];
        let hinge = self.keys.clip_range * a.abs() + a * pre * terms(w, second);
        let slope = if hinge >= 0.0 { point.share.policy * post * a * pre } else { 0.0 };
        Policy {
            value: point.share.policy * post * hinge.max(0.0),
            coefficients: vec![slope * second * w * w, slope * w],
            ratio: (-terms(weights::base(step), 1.0)).exp(),
            is_closed: hinge < 0.0,
        }
    }

    /// PPO's surrogate of the ratio to some power.
    fn compared(&self, point: &Point, a: f64, gram: &[[f64; 4]; 4]) -> Policy {
        let (step, log_prob) = (self.steps.at(point.step), self.steps.log_prob(point.step));
        let Ratio { exponent, post } = weights::ratio(self.keys.reweight, step, self.steps.length(point.step));
        let old = point.log_prob_old.expect("the rollout has recorded it");
        let mut change = log_prob.of(gram[0][0]) - old;
        if self.is_guard() {
            change += gram[1][1] / (2.0 * step.s * step.s);
        }
        let clip = Clip { low: self.keys.clip_range, high: self.keys.clip_range };
        let surrogate = clip.surrogate(a, exponent * change);
        let slope = point.share.policy * post * surrogate.slope * exponent * 2.0 * log_prob.kappa * step.b;
        let coefficients = if self.is_guard() { vec![-slope, slope] } else { vec![-slope] };
        Policy {
            value: point.share.policy * post * surrogate.value,
            coefficients,
            ratio: (exponent * change).exp(),
            is_closed: surrogate.slope == 0.0,
        }
    }

    /// Whether the ratio is one without the mean that makes every ratio small.
    fn is_guard(&self) -> bool {
        (self.keys.loss, self.keys.reweight) == (RsmLoss::Ppo, Reweight::Guard)
    }
}

impl Algorithm for Rsm {
    fn name(&self) -> &'static str {
        "rsm"
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
        Needs {
            reference: self.keys.kl_weight > 0.0,
            mean_old: self.is_guard(),
            velocity_old: self.keys.loss == RsmLoss::Matching,
            ..Needs::default()
        }
    }

    fn advantages(&self, rewards: &[f64], group: &[&str]) -> Advantages {
        let eps = self.advantage_eps();
        if self.is_branched() { group_normalised(rewards, group, eps) } else { group_centered(rewards, group, eps) }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        if self.is_branched() { 1 } else { self.most() }
    }

    fn forks(&self) -> &[usize] {
        &self.forks
    }

    fn each(&self, samples: usize) -> Each {
        let images = if self.is_branched() { samples * self.forks.iter().sum::<usize>() } else { samples };
        Each { images, points: images * self.points_per_image() + samples * self.anchors().len() }
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let (images, anchors) = (self.points(epoch), self.anchor_points(epoch));
        let count = self.keys.updates_per_epoch;
        let update = |(of_images, of_anchors): (Range<usize>, Range<usize>)| {
            let mut points = [&images[of_images].concat(), &anchors[of_anchors]].concat();
            self.weigh(&mut points);
            points
        };
        shares(images.len(), count).zip(shares(anchors.len(), count)).map(update).collect()
    }

    /// Whole trajectories are trained on at all steps but the last. Trunks follow the ODE as far as something leaves them or
    /// is anchored at them.
    fn window(&self, _: u64, _: u32) -> Option<Window> {
        if !self.is_branched() {
            return Some(Window::new(0..self.steps.all().len(), 0..self.most()));
        }
        let forked = self.forks.iter().rposition(|k| *k > 0).expect("checked: some step has forks");
        let end = self.anchors().last().map_or(forked, |anchored| forked.max(*anchored)) + 1;
        Some(Window::new([], 0..end))
    }

    fn clip_range(&self) -> Option<(f64, &'static str)> {
        Some((self.keys.clip_range, "clip_range"))
    }

    fn guidance(&self) -> Option<Guidance> {
        let trains_unconditional = self.keys.cfg_uncond_grad;
        (self.guidance > 1.0).then_some(Guidance { scale: self.guidance, trains_unconditional })
    }

    /// Forks of equal advantages teach nothing and do not count; every step counts alike, however many forks it has.
    fn weigh(&self, points: &mut [Point]) {
        let balance = |p: &Point| self.balance(p.step);
        let forks = points.iter().filter(|p| balance(p).is_some()).count();
        let valid = points.iter().filter(|p| balance(p).is_some() && p.advantage != 0.0).count();
        let part = |of: usize| 1.0 / of.max(1) as f64;
        let anchors = points.len() - forks;
        for point in points {
            point.share = match balance(point) {
                Some(balance) => {
                    let policy = if point.advantage == 0.0 { 0.0 } else { balance * part(valid) };
                    Share { policy, anchor: balance * part(forks) }
                }
                None => Share { policy: 0.0, anchor: self.mean_forks() * part(anchors) },
            };
        }
    }

    /// `matching`: `θ − v_old` and the step's noise. `ppo`: as [Flow-GRPO](super::Grpo). And `θ − ref`.
    fn differences(&self, points: &[Point]) -> Vec<Difference> {
        let mut all = match self.keys.loss {
            RsmLoss::Matching => {
                vec![Difference::from(Operand::VelocityOld), Difference::signed(&[(1.0, Operand::Noise)])]
            }
            RsmLoss::Ppo => vec![self.steps.mean_less(points, Operand::Next)],
        };
        all.extend(self.is_guard().then(|| self.steps.mean_less(points, Operand::MeanOld)));
        all.extend(self.needs().reference.then(|| Difference::from(Operand::Reference)));
        all
    }

    fn loss(&self, points: &[Point], products: &[Products], _: usize) -> Loss {
        let of_policy = if self.keys.loss == RsmLoss::Matching || self.is_guard() { 2 } else { 1 };
        let count = of_policy + usize::from(self.needs().reference);
        let mut loss = Loss { coefficients: vec![Vec::new(); count], ..Loss::default() };
        let most = self.keys.advantage_clip;
        for (point, Products { gram, .. }) in points.iter().zip(products) {
            let a = point.advantage.clamp(-most, most);
            let policy = match (self.balance(point.step), self.keys.loss) {
                // Where nothing has left the trunk there is nothing to compare.
                (None, _) => Policy { value: 0.0, coefficients: vec![0.0; of_policy], ratio: 1.0, is_closed: false },
                (_, RsmLoss::Matching) => self.matched(point, a, gram),
                (_, RsmLoss::Ppo) => self.compared(point, a, gram),
            };
            loss.value += policy.value;
            loss.ratios.push(policy.ratio);
            loss.clipped += usize::from(policy.is_closed && point.share.policy != 0.0);
            for (all, one) in loss.coefficients.iter_mut().zip(policy.coefficients) {
                all.push(one);
            }
            if let Some(anchors) = loss.coefficients.get_mut(of_policy) {
                let b = self.steps.at(point.step).b;
                let variance = self.steps.variance(point.step, self.keys.kl_denominator);
                let weight = self.keys.kl_weight * point.share.anchor * b * b / (2.0 * variance);
                loss.value += weight * gram[of_policy][of_policy];
                anchors.push(2.0 * weight);
            }
        }
        loss
    }

    fn follow(&self, _: &mut AdapterBank, _: u64) {}
}
