//! The noise levels a sampler visits.

mod beta;
mod config;
#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};

use crate::models::source::Component;
/// More than any sampler needs: the models were trained with 1000 noise levels.
const MOST_STEPS: usize = 10_000;

/// Fails unless a sampler can take this many `steps`; `what` says where they were asked for.
///
/// # Errors
/// Names `what`, what was found, and what is possible.
pub fn check_steps(what: &str, steps: usize) -> Result<()> {
    ensure!((1..=MOST_STEPS).contains(&steps), "{what} is {steps}, expected 1 to {MOST_STEPS}");
    Ok(())
}

/// The flow-matching Euler schedule of SD3 (`FlowMatchEulerDiscreteScheduler` of diffusers).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    shift: Shift,
    /// Steps the model was trained with; its time input is `σ` times this.
    train_steps: usize,
    /// The last noise level before 0, which the grid is stretched to.
    terminal: Option<f64>,
    spacing: Spacing,
}

/// How the even grid is moved towards noise: `σ = s·r/(1 + (s − 1)·r)`.
#[derive(Clone, Debug, PartialEq)]
enum Shift {
    /// By the same `s` for every image.
    Static(f64),
    /// By an `s` that grows with the image.
    Dynamic(Dynamic),
}

/// `μ` on a line through two numbers of tokens.
#[derive(Clone, Debug, PartialEq)]
struct Dynamic {
    /// Tokens and `μ` of the smaller image.
    base: (f64, f64),
    /// Tokens and `μ` of the larger.
    max: (f64, f64),
    /// Whether `s` is `e^μ` or `μ` itself.
    exponential: bool,
}

/// How the levels lie between the first and the last of the shifted grid.
#[derive(Clone, Debug, PartialEq)]
enum Spacing {
    /// Where the shift put them.
    Shifted,
    /// On a curve through the two ends, or through those that the config gives.
    Between { curve: Curve, first: Option<f64>, last: Option<f64> },
}

/// What is even in the number of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    /// `σ^(1/7)` (Karras et al. 2022).
    Karras,
    /// `ln σ`.
    Exponential,
    /// The probability under the beta distribution B(0.6, 0.6) (arXiv 2407.12173).
    Beta,
}

impl Dynamic {
    /// The shift `s` for an image of `tokens`.
    fn at(&self, tokens: usize) -> f64 {
        let ((n0, mu0), (n1, mu1)) = (self.base, self.max);
        let slope = (mu1 - mu0) / (n1 - n0);
        let mu = tokens as f64 * slope + (mu0 - slope * n0);
        if self.exponential { mu.exp() } else { mu }
    }
}

impl Curve {
    /// The level `along` (0 to 1) from `first` to `last`.
    fn at(self, along: f64, first: f64, last: f64) -> f64 {
        const RHO: f64 = 7.0;
        let between = |a: f64, b: f64| a + along * (b - a);
        match self {
            Self::Karras => between(first.powf(1.0 / RHO), last.powf(1.0 / RHO)).powf(RHO),
            Self::Exponential => between(first.ln(), last.ln()).exp(),
            Self::Beta => last + beta::quantile(1.0 - along) * (first - last),
        }
    }
}

/// `s·r/(1 + (s − 1)·r)`.
fn shifted(s: f64, r: f64) -> f64 {
    s * r / (1.0 + (s - 1.0) * r)
}

impl Schedule {
    /// The schedule of models trained with 1000 noise levels that are shifted by `shift` for every image.
    pub fn with_shift(shift: f64) -> Self {
        Self { shift: Shift::Static(shift), train_steps: 1000, terminal: None, spacing: Spacing::Shifted }
    }

    /// Reads the `scheduler_config.json` of `component`. Keys that the scheduler does not have are passed over, as diffusers does.
    ///
    /// # Errors
    /// Names the file and the key if the scheduler is another one, a value is impossible, or an option has no meaning for
    /// SD3.
    pub fn load(component: impl Into<Component>) -> Result<Self> {
        let (path, settings) = component.into().settings("scheduler_config.json")?;
        config::read(&path, settings)
    }

    /// The noise level of training that is `r` of all the way from image to noise. Without a static shift it is `r`, as it is
    /// in diffusers' table of training levels: a shift by the size of the image is one of sampling.
    pub fn trained(&self, r: f64) -> f64 {
        match self.shift {
            Shift::Static(s) => shifted(s, r),
            Shift::Dynamic(_) => r,
        }
    }

    /// The noise levels at which a rollout of `steps` steps evaluates the network: its [`sigmas`](Self::sigmas) but the 0 at the
    /// end.
    ///
    /// # Errors
    /// As that.
    pub fn levels(&self, steps: usize, tokens: usize) -> Result<Vec<f32>> {
        Ok(self.sigmas(steps, tokens)?.into_iter().filter(|sigma| *sigma > 0.0).collect())
    }

    /// The `steps + 1` noise levels from noise to 0 for an image of `tokens`. A static shift is applied to the end-point
    /// twice, as in diffusers: the grid runs to the shifted last training level, and is then shifted itself.
    ///
    /// # Errors
    /// If there are no steps, or the scheduler's settings give no falling levels for this image.
    pub fn sigmas(&self, steps: usize, tokens: usize) -> Result<Vec<f32>> {
        check_steps("the number of steps", steps)?;
        let end = f64::from(self.trained(f64::from(1.0 / self.train_steps as f32)) as f32);
        let shift = match &self.shift {
            Shift::Static(s) => *s,
            Shift::Dynamic(dynamic) => dynamic.at(tokens),
        };
        let along = |i: usize| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
        let mut levels: Vec<f64> = (0..steps).map(|i| shifted(shift, 1.0 + along(i) * (end - 1.0))).collect();
        let (first, last) = (levels[0], levels[steps - 1]);
        // A single level is all noise: there is nothing to stretch.
        if let Some(terminal) = self.terminal.filter(|_| steps > 1) {
            let scale = (1.0 - last) / (1.0 - terminal);
            levels.iter_mut().for_each(|level| *level = 1.0 - (1.0 - *level) / scale);
        }
        if let Spacing::Between { curve, first: given_first, last: given_last } = self.spacing {
            let (first, last) = (given_first.unwrap_or(levels[0]), given_last.unwrap_or(levels[steps - 1]));
            levels = (0..steps).map(|i| curve.at(along(i), first, last)).collect();
        }
        let sigmas: Vec<f32> = levels.iter().map(|level| *level as f32).chain([0.0]).collect();
        ensure!(
            sigmas[0] <= 1.0 && sigmas.windows(2).all(|pair| pair[0] >= pair[1]),
            "the scheduler's noise levels do not fall from 1 to 0 for {tokens} tokens and {steps} steps: a shift by {shift} \
             leads from {first} to {last}"
        );
        Ok(sigmas)
    }

    /// The model's time input at noise level `sigma`.
    pub fn timestep(&self, sigma: f32) -> f32 {
        sigma * self.train_steps as f32
    }
}
