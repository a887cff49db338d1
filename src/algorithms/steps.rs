//! What methods that are trained on the steps of their rollouts share: the numbers of the steps, and the differences that
//! likelihoods are made of.

use anyhow::{Result, ensure};

use super::{Difference, Operand, Point, Weight};
use crate::config::method::KlDenominator;
use crate::config::raw::Rollout;
use crate::rollout::sampler::{Kind, LogProb, Step};
use crate::rollout::schedule::Schedule;

/// The steps of a stochastic rollout.
pub struct Steps {
    steps: Vec<Step>,
    /// Their lengths in time.
    lengths: Vec<f64>,
}

impl Steps {
    /// Those of `rollout` on `schedule` for images of `tokens`, with a sampler that is one of those that fit the method `name`.
    ///
    /// # Errors
    /// If the sampler is not, adds no noise, or the schedule has no such rollout.
    pub fn new(rollout: &Rollout, name: &str, fits: &[Kind], schedule: &Schedule, tokens: usize) -> Result<Self> {
        let names: Vec<&str> = fits.iter().map(|kind| kind.name()).collect();
        let (sampler, noise_level) = (rollout.sampler, rollout.noise_level);
        ensure!(
            fits.contains(&sampler),
            "rollout.sampler is '{}', expected {} for '{name}'",
            sampler.name(),
            names.join(" or ")
        );
        ensure!(
            noise_level > 0.0,
            "rollout.noise_level is {noise_level}: without noise '{name}' has nothing to compare; published: 0.7"
        );
        let sigmas = schedule.sigmas(rollout.num_inference_steps, tokens)?;
        let steps = sampler.at(noise_level).steps(&sigmas);
        let lengths = sigmas.windows(2).map(|pair| f64::from(pair[0]) - f64::from(pair[1])).collect();
        Ok(Self { steps, lengths })
    }

    /// All of them.
    pub fn all(&self) -> &[Step] {
        &self.steps
    }

    /// That of a number.
    pub fn at(&self, step: usize) -> Step {
        self.steps[step]
    }

    /// How long it is.
    pub fn length(&self, step: usize) -> f64 {
        self.lengths[step]
    }

    /// How probable what comes after it is.
    pub fn log_prob(&self, step: usize) -> LogProb {
        self.steps[step].log_prob.expect("checked: it adds noise")
    }

    /// The variance of its noise, or the same per unit of time.
    pub fn variance(&self, step: usize, of: KlDenominator) -> f64 {
        let variance = self.steps[step].s.powi(2);
        match of {
            KlDenominator::StepStd => variance,
            KlDenominator::StdDev => variance / self.lengths[step],
        }
    }

    /// The means of the points' steps by the trained policy less `other`, in the order of operations that a step itself takes.
    pub fn mean_less(&self, points: &[Point], other: Operand) -> Difference {
        let rows = |of: fn(&Step) -> f64| Weight::Rows(points.iter().map(|p| of(&self.steps[p.step]) as f32).collect());
        let terms = vec![(rows(|s| s.a), Operand::X), (rows(|s| s.b), Operand::Theta), (Weight::All(-1.0), other)];
        Difference { terms }
    }
}
