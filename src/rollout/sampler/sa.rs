//! SA-Solver (Xue et al. 2023): stochastic Adams, predictor and corrector of second order, one network call a step.

use super::{LogProb, Sampler, Step, lambda};

/// Noise between these levels of the step's target alone.
const NOISY: std::ops::RangeInclusive<f64> = 0.3..=0.9;
/// Where it starts in the place of 1, whose `λ` is infinite.
const FIRST: f32 = 1.0 - 1e-3;

/// The solver with the few-step terms of the published code, as AWM uses it.
pub struct SaSolver {
    /// η: what `τ` is between the noisy levels.
    pub noise_level: f64,
}

/// What a step leaves to the corrector of the next.
#[derive(Clone, Copy, Default)]
struct Before {
    u: f64,
    p: f64,
}

impl SaSolver {
    /// `sigmas` as AWM changes them: not from 1, and half way to the last but one in the place of the last before 0.
    fn grid(sigmas: &[f32]) -> Vec<f32> {
        let mut grid = sigmas[..sigmas.len() - 1].to_vec();
        grid[0] = FIRST.min(grid[0]);
        if let [.., before, last] = &mut grid[..] {
            *last = *before / 2.0;
        }
        grid
    }
}

impl Sampler for SaSolver {
    /// Predictor and corrector have the same factors on the sample and on the noise, so the corrected point is the predicted one
    /// plus clean predictions, and the next predictor is applied to that: one linear step a call. The last call's clean
    /// prediction is the result.
    fn steps(&self, sigmas: &[f32]) -> Vec<Step> {
        let grid = Self::grid(sigmas);
        let at = |i: usize| f64::from(grid[i]);
        let (mut steps, mut before) = (Vec::new(), Before::default());
        for (i, pair) in grid.windows(2).enumerate() {
            let (sigma, next) = (f64::from(pair[0]), f64::from(pair[1]));
            let tau = if NOISY.contains(&next) { self.noise_level } else { 0.0 };
            let (w, h) = (1.0 + tau * tau, lambda(next) - lambda(sigma));
            let p = if i == 0 { 0.0 } else { w * h * h / (2.0 * (lambda(sigma) - lambda(at(i - 1)))) };
            // The corrector of this point; it has no history on the first two calls.
            let Before { u: u_before, p: p_before } = if i < 2 { Before::default() } else { before };
            let signal = 1.0 - sigma;
            let correct = [signal * u_before, -signal * (u_before + p_before), signal * p_before];
            let kept = (-tau * tau * h).exp() * next / sigma;
            let m = kept * correct[0] + (1.0 - next) * (p - (-w * h).exp_m1());
            let history = [kept * correct[1] - (1.0 - next) * p, kept * correct[2]];
            let s = next * (-(-2.0 * tau * tau * h).exp_m1()).sqrt();
            let log_prob = LogProb::normal(s);
            steps.push(Step { sigma: pair[0], a: kept + m, b: -m * sigma, history, s, log_prob });
            before = Before { u: w * h / 2.0, p };
        }
        let last = grid[grid.len() - 1];
        steps.push(Step::euler(last, 0.0));
        steps
    }
}
