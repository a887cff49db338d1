//! DDIM with noise (Song et al. 2021, eq. 16) in the variables of a flow.

use super::{LogProb, Sampler, Step};

/// `x' = (1 − σ')·x̂0 + √(σ'² − ρ²)·ε̂ + ρ·ε` with `ρ = η·σ'·√(1 − (σ'(1 − σ)/(σ(1 − σ')))²)`.
pub struct Ddim {
    /// η, 0 to 1.
    pub noise_level: f64,
}

impl Sampler for Ddim {
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let step = |pair: &[f32]| {
            let euler = Step::euler(pair[0], pair[1]);
            let (sigma, next) = (f64::from(pair[0]), f64::from(pair[1]));
            if next == 0.0 {
                return euler;
            }
            let kept = next * (1.0 - sigma) / (sigma * (1.0 - next));
            let rho = self.noise_level * next * (1.0 - kept * kept).sqrt();
            // σ' − √(σ'² − ρ²), without taking the difference of two near numbers.
            let z = rho * rho / ((next * next - rho * rho).sqrt() + next);
            let b = euler.b - z * (1.0 - sigma);
            Step { a: 1.0 - z, b, s: rho, log_prob: LogProb::normal(rho), ..euler }
        };
        sigmas.windows(2).map(step).collect()
    }
}
