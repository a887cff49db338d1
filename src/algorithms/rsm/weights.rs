//! How RSM's reweightings weigh the steps of a rollout (`losses.md`, section 2). With `s = σ̃√Δt` the standard deviation of a
//! step's noise, `Δt` its length and `b` its factor on the velocity, `w_base = −b/s`.

use crate::config::method::Reweight;
use crate::rollout::sampler::Step;

/// `w_pcpo / Δt`: as published.
const PCPO: f64 = 4.315_213_463_989_592_5;

/// What tempflow's weight is, over `s`.
const TEMPFLOW: f64 = 2.25;

/// The numbers of the matching loss: `hinge(A·pre·(second·½w²⟨Δ,Δ⟩ + w⟨Δ,ε⟩))·post`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matching {
    /// What velocities are times.
    pub w: f64,
    /// Whether the second-order term counts: 1 or 0.
    pub second: f64,
    /// What the term in the hinge is times.
    pub pre: f64,
    /// What the hinge is times.
    pub post: f64,
}

/// The numbers of the PPO loss: `surrogate(exponent·ln ρ)·post`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// What the log-ratio is times.
    pub exponent: f64,
    /// What the surrogate is times.
    pub post: f64,
}

/// `w_base`: `w·s` is how far the mean of a step goes for a unit of velocity, and `T1 + T2 = −ln ρ`.
pub fn base(step: Step) -> f64 {
    -step.b / step.s
}

/// Those of a step of some length.
pub fn matching(reweight: Reweight, step: Step, length: f64) -> Matching {
    let s = step.s;
    let plain = Matching { w: base(step), second: 1.0, pre: 1.0, post: 1.0 };
    match reweight {
        Reweight::Base => plain,
        Reweight::Pcpo => Matching { w: PCPO * length, ..plain },
        Reweight::Tempflow => Matching { pre: TEMPFLOW * s, ..plain },
        Reweight::Guard => Matching { second: 0.0, pre: s, post: 1.0 / length, ..plain },
        Reweight::Fairclip => Matching { pre: s * s, post: 1.0 / (s * s), ..plain },
        Reweight::Fairclip2 => Matching { pre: s * s, post: 1.0 / (s * length), ..plain },
    }
}

/// Those of a step of some length.
pub fn ratio(reweight: Reweight, step: Step, length: f64) -> Ratio {
    let s = step.s;
    match reweight {
        Reweight::Base => Ratio { exponent: 1.0, post: 1.0 },
        Reweight::Pcpo => Ratio { exponent: PCPO * length / base(step), post: 1.0 },
        Reweight::Tempflow => Ratio { exponent: 1.0, post: TEMPFLOW * s },
        Reweight::Guard => Ratio { exponent: s, post: 1.0 / length },
        Reweight::Fairclip => Ratio { exponent: s * s, post: 1.0 / (s * s) },
        Reweight::Fairclip2 => unreachable!("refused with the config"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::sampler::{FlowSde, Sampler};
    use crate::rollout::schedule::Schedule;

    /// §10.3.
    #[test]
    fn base_weights_of_the_published_grid_are_the_golden_ones() {
        let sigmas = Schedule::with_shift(3.0).sigmas(10, 1024).unwrap();
        let steps = FlowSde { noise_level: 0.7 }.steps(&sigmas);
        let want = [0.05696, 0.07839, 0.12924, 0.18798, 0.26403, 0.37099, 0.53564, 0.82480, 1.48675];
        for (step, want) in steps.iter().zip(want) {
            assert!((base(*step) - want).abs() < 5.1e-6, "{} {want}", base(*step));
        }
        // Its definition: (√Δt/σ̃)·(1 + (1 − t)/(2t)·σ̃²).
        for (step, pair) in steps[1..9].iter().zip(sigmas[1..].windows(2)) {
            let (t, length) = (f64::from(pair[0]), f64::from(pair[0]) - f64::from(pair[1]));
            let level = 0.7 * (t / (1.0 - t)).sqrt();
            let w = length.sqrt() / level * (1.0 + (1.0 - t) / (2.0 * t) * level * level);
            assert!((base(*step) - w).abs() < 1e-12 * w, "{} {w}", base(*step));
        }
    }
}
