//! Reward Score Matching (arXiv 2604.17415), first order (the VGG-Flow family): the velocity along the way of a rollout is matched with the
//! reference's, moved along the gradient of the reward with respect to the latent at the end of it, or to those that it points at.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::together::shares;
use super::{Algorithm, Difference, Guidance, Loss, Needs, Operand, Point, Scored, Window};
use crate::config::TrainConfig;
use crate::config::method::{RsmFirstOrderKeys, Slope};
use crate::device::philox::Purpose;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// `L = mean ‖v_θ − (v_ref − η(σ)·κ·g)‖²` with `g = min(1, threshold/‖∇r‖)·∇r`: as `x0 = x − t·v`, what is subtracted from the
/// velocity moves pictures up the reward.
pub struct RsmFirstOrder {
    keys: RsmFirstOrderKeys,
    /// The noise levels of the rollout.
    sigmas: Vec<f32>,
    guidance: f32,
}

impl RsmFirstOrder {
    /// With the settings of a config, for rollouts on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &RsmFirstOrderKeys, config: &TrainConfig, schedule: &Schedule, tokens: usize) -> Result<Self> {
        let sigmas = schedule.levels(config.rollout.num_inference_steps, tokens)?;
        Ok(Self { keys: keys.clone(), sigmas, guidance: config.rollout.guidance_scale })
    }

    /// What a point's gradient is times: `η(σ)·κ`, and what it is clipped by.
    fn strength(&self, point: &Point) -> f64 {
        let rest = 1.0 - f64::from(point.t);
        let eta = match self.keys.schedule {
            Slope::Linear => rest,
            Slope::Square => rest * rest,
        };
        eta * self.keys.reward_scale * point.gradient_scale
    }

    /// Clips the gradients of the points of each update, whose norms are `norm`, by what those of the update before it say.
    fn clip(&self, updates: &mut [Vec<Point>], norm: impl Fn(&Point) -> f64) {
        let (mut threshold, q) = (self.keys.gradient_clip, self.keys.gradient_quantile);
        if threshold == 0.0 {
            return;
        }
        for points in updates.iter_mut().filter(|points| !points.is_empty()) {
            let norms: Vec<f64> = points.iter().map(&norm).collect();
            for (point, norm) in points.iter_mut().zip(&norms) {
                // Also where nothing is to be followed.
                point.gradient_scale = if *norm > threshold { threshold / norm } else { 1.0 };
            }
            threshold = quantile(norms, q);
        }
    }
}

/// The `q`-quantile of numbers, between neighbours linearly (`torch.quantile`).
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = q * (values.len() - 1) as f64;
    let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

impl Algorithm for RsmFirstOrder {
    fn name(&self) -> &'static str {
        "rsm_first_order"
    }

    fn rollout(&self, _: u64) -> Slot {
        Slot::Theta
    }

    fn rollout_is_data(&self) -> bool {
        true
    }

    fn slots(&self) -> &'static [Slot] {
        &[]
    }

    fn needs(&self) -> Needs {
        Needs { reference: true, reward_gradient: Some(self.keys.gradient), ..Needs::default() }
    }

    /// What is reported; nothing is learnt from how an image compares with others.
    fn advantage_eps(&self) -> f64 {
        1e-4
    }

    fn points_per_image(&self) -> usize {
        self.sigmas.len()
    }

    fn updates_per_epoch(&self) -> usize {
        self.keys.updates_per_epoch
    }

    /// Every image at every step of its rollout, in an order of the epoch's own.
    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let at =
            |image: usize, step: usize| Point { step, ..Point::new(image, self.sigmas[step], epoch.advantages[image]) };
        let images = 0..epoch.advantages.len();
        let mut points: Vec<Point> = images
            .flat_map(|image| epoch.steps.iter().map(move |step| (image, *step)))
            .map(|(i, s)| at(i, s))
            .collect();
        (epoch.key)(Purpose::PointOrder, 0, 0).stream().shuffle(&mut points);
        let mut updates: Vec<Vec<Point>> =
            shares(points.len(), self.keys.updates_per_epoch).map(|share| points[share].to_vec()).collect();
        self.clip(&mut updates, |point| epoch.gradient_norm(point));
        updates
    }

    fn window(&self, _: u64, _: u32) -> Option<Window> {
        Some(Window::new(0..self.sigmas.len(), 0..self.sigmas.len()))
    }

    /// The unconditional velocity is a constant.
    fn guidance(&self) -> Option<Guidance> {
        (self.guidance > 1.0).then_some(Guidance { scale: self.guidance, trains_unconditional: false })
    }

    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let away = Difference::from(Operand::Reference);
        vec![away, Difference::signed(&[(1.0, Operand::RewardGradient)])]
    }

    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let share = 1.0 / total as f64;
        let mut loss = Loss { coefficients: vec![vec![2.0 * share; points.len()], Vec::new()], ..Loss::default() };
        for (point, Products { gram, .. }) in points.iter().zip(products) {
            let e = self.strength(point);
            loss.value += share * (gram[0][0] + 2.0 * e * gram[0][1] + e * e * gram[1][1]);
            loss.coefficients[1].push(share * 2.0 * e);
            loss.clipped += usize::from(point.gradient_scale < 1.0);
        }
        loss
    }

    fn follow(&self, _: &mut AdapterBank, _: u64) {}
}
