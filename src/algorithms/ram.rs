//! Reinforce Adjoint Matching (arXiv 2605.10759): regress the velocity to that of the reward-tilted policy.

#[cfg(test)]
mod tests;

use anyhow::Result;

use super::time::Times;
use super::{Algorithm, Difference, Loss, Needs, Operand, Point, Scored};
use crate::config::method::{Form, RamKeys};
use crate::device::philox::Purpose;
use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;
use crate::ops::products::Products;
use crate::rollout::schedule::Schedule;

/// `L = mean ‖v_θ(x_t) − target‖²` with `y = noise − x0`; the mean is over points and over all axes of a latent.
pub struct Ram {
    keys: RamKeys,
    times: Times,
}

impl Ram {
    /// With the settings of a config, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(keys: &RamKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let times = Times::new(keys.timestep_power, keys.timestep_grid, schedule, steps, tokens)?;
        Ok(Self { keys: keys.clone(), times })
    }
}

/// How much of the lagged adapter survives `update` (spec §4.5): nothing in update 0, then `rate` more each time
/// (published: 0.01), up to `max` (0.9).
fn old_decay(update: u64, rate: f32, max: f32) -> f32 {
    (rate * update as f32).min(max)
}

impl Algorithm for Ram {
    fn name(&self) -> &'static str {
        "ram"
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
        Needs { reference: true, old: self.keys.form == Form::Released, ..Needs::default() }
    }

    fn advantage_eps(&self) -> f64 {
        self.keys.advantage_eps
    }

    fn points_per_image(&self) -> usize {
        self.keys.num_noisings
    }

    fn updates_per_epoch(&self) -> usize {
        1
    }

    fn updates(&self, epoch: &Scored) -> Vec<Vec<Point>> {
        let point = |image: usize, draw: u32| {
            let key = |purpose| (epoch.key)(purpose, image, draw);
            let t = self.times.draw(&mut key(Purpose::Timestep).stream());
            Point { noise: key(Purpose::ForwardNoise), ..Point::new(image, t, epoch.advantages[image]) }
        };
        let draws = self.keys.num_noisings as u32;
        let images = 0..epoch.advantages.len();
        vec![images.flat_map(|image| (0..draws).map(move |draw| (image, draw))).map(|(i, k)| point(i, k)).collect()]
    }

    /// `d1 = θ − ref` and `d2 = y − old` (or `y − θ`).
    fn differences(&self, _: &[Point]) -> Vec<Difference> {
        let from = match self.keys.form {
            Form::Released => Operand::Old,
            Form::Paper => Operand::Theta,
        };
        vec![
            Difference::from(Operand::Reference),
            Difference::signed(&[(1.0, Operand::Noise), (-1.0, Operand::X0), (-1.0, from)]),
        ]
    }

    /// `⟨d1,d1⟩ − 2s⟨d1,d2⟩ + s²⟨d2,d2⟩` with `s = m·A`, and its gradient `2·d1 − 2s·d2`.
    fn loss(&self, points: &[Point], products: &[Products], total: usize) -> Loss {
        let share = 1.0 / total as f64;
        let strengths = points.iter().map(|p| f64::from(self.keys.reward_multiplier) * p.advantage);
        let mut loss = Loss { coefficients: vec![vec![2.0 * share; points.len()], Vec::new()], ..Loss::default() };
        for (s, Products { gram: g, .. }) in strengths.zip(products) {
            loss.value += share * (g[0][0] - 2.0 * s * g[0][1] + s * s * g[1][1]);
            loss.coefficients[1].push(-2.0 * s * share);
        }
        loss
    }

    fn follow(&self, bank: &mut AdapterBank, update: u64) {
        let decay = old_decay(update, self.keys.old_decay_rate, self.keys.old_decay_max);
        let (old, theta) = bank.pair_mut(Slot::Old, Slot::Theta);
        lerp::forward(old, theta, decay);
    }
}
