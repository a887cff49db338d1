//! DPM-Solver++ (Lu et al. 2022) of second order, multistep, for flows.

use super::{Sampler, Step, lambda};

/// The Euler step plus `q·(m_0 − m_1)`, of the clean predictions here and one step before.
pub struct DpmSolver2;

impl Sampler for DpmSolver2 {
    /// First order on the first step and the last; and on the second where the grid starts at 1, as `λ(1)` is infinite.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let at = |i: usize| f64::from(sigmas[i]);
        let step = |i: usize| {
            let euler = Step::euler(sigmas[i], sigmas[i + 1]);
            let (sigma, next) = (at(i), at(i + 1));
            if i == 0 || next == 0.0 || at(i - 1) == 1.0 {
                return euler;
            }
            let (h, h_before) = (lambda(next) - lambda(sigma), lambda(sigma) - lambda(at(i - 1)));
            let q = -0.5 * (1.0 - next) * (-h).exp_m1() * h / h_before;
            Step { a: 1.0 + q, b: euler.b - q * sigma, history: [-q, 0.0], ..euler }
        };
        (0..sigmas.len() - 1).map(step).collect()
    }
}
