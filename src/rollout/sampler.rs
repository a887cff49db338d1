//! Samplers as tables of numbers. Every one of them is linear in the sample, velocities and noise: a step is a
//! [`Row`] for the op that takes it.

use crate::ops::step::Row;

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
}

impl Step {
    /// The numbers as the op takes them.
    pub fn row(&self) -> Row {
        Row { a: self.a as f32, b: self.b as f32, history: self.history.map(|h| h as f32), s: self.s as f32 }
    }
}

/// A way to go through the noise levels.
pub trait Sampler: Send + Sync {
    /// Its name in configs.
    fn name(&self) -> &'static str;

    /// The steps from `sigmas[0]` to the last of them.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step>;
}

/// Explicit Euler steps along the velocity field: the deterministic sampler.
pub struct Euler;

impl Sampler for Euler {
    fn name(&self) -> &'static str {
        "euler"
    }

    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let step = |pair: &[f32]| Step {
            sigma: pair[0],
            a: 1.0,
            b: f64::from(pair[1]) - f64::from(pair[0]),
            history: [0.0; 2],
            s: 0.0,
        };
        sigmas.windows(2).map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::schedule::Schedule;

    /// Rows of the specification's table of golden numbers.
    #[test]
    fn euler_has_the_published_rows() {
        let steps = Euler.steps(&Schedule::with_shift(3.0).sigmas(10, 1024).unwrap());
        assert_eq!(steps.len(), 10);
        for (i, b) in [(0, -0.039_870_679_378_5), (9, -0.008_928_571_827_71)] {
            // The grid is in f32.
            assert!((steps[i].b - b).abs() < 6e-8, "{i}: {}", steps[i].b);
            assert_eq!((steps[i].a, steps[i].history, steps[i].s), (1.0, [0.0; 2], 0.0));
        }
        // The factor is what subtracting the f32 levels gives.
        assert!(steps.windows(2).all(|w| w[0].row().b == w[1].sigma - w[0].sigma));
    }
}
