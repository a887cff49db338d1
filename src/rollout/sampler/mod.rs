//! Samplers as tables of numbers. Every one of them is linear in the sample, velocities and noise: a step is a
//! [`Row`] for the op that takes it.

mod cps;
mod ddim;
mod dpm;
mod flow;
mod sa;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::io::did_you_mean;
use crate::ops::step::Row;

pub use cps::Cps;
pub use ddim::Ddim;
pub use dpm::DpmSolver2;
pub use flow::{DanceSde, FlowSde};
pub use sa::SaSolver;

/// One step: `x' = a·x + b·v + history·m + s·ε` at noise level `sigma`, `m` being the clean predictions of earlier steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Where the velocity is evaluated.
    pub sigma: f32,
    /// Factor on the sample.
    pub a: f64,
    /// Factor on the velocity.
    pub b: f64,
    /// Factors on the clean predictions of the one and of two steps before.
    pub history: [f64; 2],
    /// Standard deviation of the noise.
    pub s: f64,
    /// How probable the next sample is, where there is noise.
    pub log_prob: Option<LogProb>,
}

/// The log-probability of a step per element, `c0 − κ·⟨x' − μ, x' − μ⟩` with the mean over a latent's elements (as
/// flow_grpo has it; a sum would be larger by their number).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProb {
    /// Factor on the mean square of what the noise has added.
    pub kappa: f64,
    /// What does not depend on it.
    pub c0: f64,
}

impl LogProb {
    /// Of a normal distribution with deviation `s`; none if that is 0.
    fn normal(s: f64) -> Option<Self> {
        let c0 = -s.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln();
        (s > 0.0).then(|| Self { kappa: 0.5 / (s * s), c0 })
    }

    /// The value for the mean square `residual`.
    pub fn of(&self, residual: f64) -> f64 {
        self.c0 - self.kappa * residual
    }
}

impl Step {
    /// Along the velocity from `sigma` to `next`.
    fn euler(sigma: f32, next: f32) -> Self {
        let b = f64::from(next) - f64::from(sigma);
        Self { sigma, a: 1.0, b, history: [0.0; 2], s: 0.0, log_prob: None }
    }

    /// The numbers as the op takes them.
    pub fn row(&self) -> Row {
        Row { a: self.a as f32, b: self.b as f32, history: self.history.map(|h| h as f32), s: self.s as f32 }
    }
}

/// A way to go through the noise levels.
pub trait Sampler: Send + Sync {
    /// The steps from `sigmas[0]` to the last of them, one for each call of the network.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step>;
}

/// The samplers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Along the velocity: the ODE. DPM-Solver++ of first order and DDIM without noise are the same.
    #[default]
    Euler,
    /// The SDE of Flow-GRPO.
    Flow,
    /// Coefficients-preserving sampling.
    Cps,
    /// The SDE of DanceGRPO.
    Dance,
    /// DDIM with noise.
    Ddim,
    /// DPM-Solver++ of second order, multistep.
    Dpm2,
    /// SA-Solver of second order, with corrector.
    Sa,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Euler, Self::Flow, Self::Cps, Self::Dance, Self::Ddim, Self::Dpm2, Self::Sa];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Flow => "flow",
            Self::Cps => "cps",
            Self::Dance => "dance",
            Self::Ddim => "ddim",
            Self::Dpm2 => "dpm2",
            Self::Sa => "sa",
        }
    }

    /// The sampler that `flag` calls `name`.
    ///
    /// # Errors
    /// Lists them, and the nearest.
    pub fn named(flag: &str, name: &str) -> Result<Self> {
        let names = || Self::ALL.into_iter().map(Self::name);
        Self::ALL.into_iter().find(|kind| kind.name() == name).with_context(|| {
            let known: Vec<&str> = names().collect();
            format!("{flag}: no sampler '{name}', expected one of {}{}", known.join(", "), did_you_mean(name, names()))
        })
    }

    /// Fails unless `flag` can be `noise_level`.
    ///
    /// # Errors
    /// Says what it can be.
    pub fn check(self, flag: &str, noise_level: f64) -> Result<()> {
        let (known, name) = (self.noise_levels(), self.name());
        if *known.end() == 0.0 {
            ensure!(noise_level == 0.0, "{flag} is {noise_level}, and '{name}' draws no noise; leave it out");
        }
        ensure!(
            known.contains(&noise_level),
            "{flag} is {noise_level}, expected {} to {} for '{name}'",
            known.start(),
            known.end()
        );
        Ok(())
    }

    /// The sampler at `noise_level`, which those that draw nothing do not look at.
    pub fn at(self, noise_level: f64) -> Box<dyn Sampler> {
        match self {
            Self::Euler => Box::new(Euler),
            Self::Flow => Box::new(FlowSde { noise_level }),
            Self::Cps => Box::new(Cps { noise_level }),
            Self::Dance => Box::new(DanceSde { noise_level }),
            Self::Ddim => Box::new(Ddim { noise_level }),
            Self::Dpm2 => Box::new(DpmSolver2),
            Self::Sa => Box::new(SaSolver { noise_level }),
        }
    }

    /// The noise levels it is defined for; only 0 if it draws nothing.
    pub fn noise_levels(self) -> std::ops::RangeInclusive<f64> {
        match self {
            Self::Euler | Self::Dpm2 => 0.0..=0.0,
            // From 1 on a larger one repeats a smaller, or has no real square root.
            Self::Cps | Self::Ddim => 0.0..=1.0,
            Self::Flow | Self::Dance | Self::Sa => 0.0..=10.0,
        }
    }
}

/// Explicit Euler steps along the velocity field: the deterministic sampler.
pub struct Euler;

impl Sampler for Euler {
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        sigmas.windows(2).map(|pair| Step::euler(pair[0], pair[1])).collect()
    }
}

/// `inside` for the steps of `window`, Euler elsewhere: noise here and there in an ODE (MixGRPO, Flow-GRPO-Fast).
pub fn windowed(inside: &dyn Sampler, sigmas: &[f32], window: &[usize]) -> Vec<Step> {
    let mut steps = Euler.steps(sigmas);
    for (i, step) in inside.steps(sigmas).into_iter().enumerate().filter(|(i, _)| window.contains(i)) {
        steps[i] = step;
    }
    steps
}

/// `λ(t) = ln((1 − t)/t)`: half the logarithm of the ratio of signal to noise.
fn lambda(t: f64) -> f64 {
    ((1.0 - t) / t).ln()
}
