//! SDEs whose marginals are those of the ODE: score-based drift and noise added to the velocity.

use super::{LogProb, Sampler, Step};

/// Flow-GRPO's (Liu et al. 2025, eq. 9): noise `η·√(σ/(1 − σ))`.
pub struct FlowSde {
    /// η.
    pub noise_level: f64,
}

/// DanceGRPO's (Xue et al. 2025): noise `η` at every level.
pub struct DanceSde {
    /// η.
    pub noise_level: f64,
}

impl Sampler for FlowSde {
    /// At σ = 1, where the noise would be infinite, its level is that of the grid's second value.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let noise = |sigma: f64| {
            let within = if sigma == 1.0 { f64::from(sigmas[1]) } else { sigma };
            self.noise_level.powi(2) * sigma / (1.0 - within)
        };
        sde(sigmas, noise)
    }
}

impl Sampler for DanceSde {
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        sde(sigmas, |_| self.noise_level.powi(2))
    }
}

/// Euler-Maruyama steps of `dx = (v + σ̃²/(2σ)·(x + (1 − σ)·v)) dt + σ̃ dw` with `variance(σ) = σ̃²`.
fn sde(sigmas: &[f32], variance: impl Fn(f64) -> f64) -> Vec<Step> {
    let step = |pair: &[f32]| {
        let (sigma, dt) = (f64::from(pair[0]), f64::from(pair[1]) - f64::from(pair[0]));
        let variance = variance(sigma);
        let (q, s) = (variance / (2.0 * sigma) * dt, (variance * -dt).sqrt());
        let (a, b) = (1.0 + q, dt + q * (1.0 - sigma));
        Step { a, b, s, log_prob: LogProb::normal(s), ..Step::euler(pair[0], pair[1]) }
    };
    sigmas.windows(2).map(step).collect()
}
