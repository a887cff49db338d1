//! Coefficients-preserving sampling (Wang and Yu 2025): part of the noise is replaced, its level stays that of the ODE.

use std::f64::consts::PI;

use super::{LogProb, Sampler, Step};

/// `x' = (1 − σ')·x̂0 + √(σ'² − s²)·ε̂ + s·ε` with `s = σ'·sin(ηπ/2)`.
pub struct Cps {
    /// η, 0 to 1.
    pub noise_level: f64,
}

impl Sampler for Cps {
    /// The log-probability is `−⟨x' − μ, x' − μ⟩`, without the factors of a normal distribution, as the published code has it.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let step = |pair: &[f32]| {
            let euler = Step::euler(pair[0], pair[1]);
            let (sigma, next) = (f64::from(pair[0]), f64::from(pair[1]));
            // What the replaced noise takes off the rest: σ' − √(σ'² − s²).
            let z = 2.0 * next * (self.noise_level * PI / 4.0).sin().powi(2);
            let s = next * (self.noise_level * PI / 2.0).sin();
            let log_prob = (s > 0.0).then_some(LogProb { kappa: 1.0, c0: 0.0 });
            Step { a: 1.0 - z, b: euler.b - z * (1.0 - sigma), s, log_prob, ..euler }
        };
        sigmas.windows(2).map(step).collect()
    }
}
