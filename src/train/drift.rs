//! Guards against a policy that leaves where it can be trusted: how far its velocities are from the base's, gradients that
//! are out of all proportion, and the rules of `[stop]` about both.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::update::UpdateReport;
use crate::config::raw::Stop;
use crate::device::Tensor;
use crate::ops::products::{self, Difference, Weights};

/// How the trained policy's velocity compares with the base's at one point of a rollout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// `‖v_θ‖ / ‖v_ref‖`.
    pub growth: f64,
    /// `⟨v_θ − v_ref, v_θ − v_ref⟩`, the mean over elements: the divergence from the base in its `v` form.
    pub distance: f64,
}

impl Drift {
    /// Of one velocity of each, alike in shape, with one row.
    pub fn of(theta: &Tensor, reference: &Tensor) -> Self {
        let (plus, minus) = ((Weights::All(1.0), theta), (Weights::All(-1.0), reference));
        let terms = [vec![plus, minus], vec![plus], vec![minus]];
        let found = products::forward(&terms.map(|terms| Difference { terms }));
        let gram = &found[0].gram;
        Self { growth: (gram[1][1] / gram[2][2]).sqrt(), distance: gram[0][0] }
    }
}

/// The norms of the gradients so far, to tell one that is out of all proportion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradNorms {
    mean: f64,
    seen: u64,
}

/// Norms that are seen before any is judged.
const FIRST: u64 = 10;
/// The share of a new norm in the mean, once as many have been seen.
const SHARE: f64 = 0.1;

impl GradNorms {
    /// Takes in `norm`; says why the step is to be left out if it is more than `most` times (0: never) the mean of those before.
    pub fn outlier(&mut self, norm: f64, most: f64) -> Option<String> {
        if most == 0.0 {
            return None;
        }
        let (before, bound) = (self.mean, most * self.mean);
        let is_outlier = self.seen >= FIRST && norm > bound;
        // What is larger still moves the mean, but not by more than the largest that is let through: norms that have grown for
        // good are let through in the end.
        let counted = if self.seen >= FIRST { norm.min(bound) } else { norm };
        self.seen += 1;
        self.mean += (counted - before) * SHARE.max(1.0 / self.seen as f64);
        is_outlier
            .then(|| format!("the gradient norm is {norm:.3}, over {most} times {before:.3}, the mean of those before"))
    }

    /// As a checkpoint holds it.
    pub fn to_json(self) -> Value {
        json!({ "mean": self.mean, "seen": self.seen })
    }

    /// From a checkpoint; of one that does not say, as at the start.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_json(value: &Value) -> Result<Self> {
        if value.is_null() {
            return Ok(Self::default());
        }
        let of = || Some(Self { mean: value["mean"].as_f64()?, seen: value["seen"].as_u64()? });
        of().context("the checkpoint's state.json has a damaged 'grad_norms'")
    }
}

/// The largest `|ρ − 1|` of an update.
pub fn ratio_deviation(update: &UpdateReport) -> Option<f64> {
    update.ratios.iter().map(|r| (r - 1.0).abs()).reduce(f64::max)
}

/// Why the run ends after the epoch that `line` of the log is about, if it has drifted further than `rules` let it.
pub fn gone_too_far(rules: &Stop, line: &Value) -> Option<String> {
    let number = |key: &str| line[key].as_f64();
    let over = |most: f64, found: Option<f64>| found.filter(|found| most > 0.0 && *found > most);
    let flat = || Some(number("zero_variance_groups")? / number("groups")?);
    let rules = [
        (
            rules.max_velocity_growth,
            number("velocity_growth"),
            "velocity_growth",
            "velocities have grown by a factor of",
        ),
        (
            rules.max_velocity_distance,
            number("velocity_distance"),
            "velocity_distance",
            "the mean square distance from the base's velocities is",
        ),
        (rules.max_flat_groups, flat(), "flat_groups", "the share of groups without a difference in reward is"),
    ];
    rules.into_iter().find_map(|(most, found, key, what)| {
        let found = over(most, found)?;
        Some(format!("{what} {found:.4}, over {most}; to go on, --set stop.max_{key}=0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn drift_is_the_ratio_of_norms_and_the_mean_square_of_the_difference() {
        let of = |values: &[f32]| Tensor::from_slice(&Device::Cpu, values, &[1, 4, 1, 1]);
        let drift = Drift::of(&of(&[2.0, 0.0, 2.0, 1.0]), &of(&[1.0, 1.0, 0.0, 1.0]));
        assert!((drift.growth - 3f64.sqrt()).abs() < 1e-12 && (drift.distance - 1.5).abs() < 1e-12, "{drift:?}");
        assert_eq!(Drift::of(&of(&[1.0; 4]), &of(&[1.0; 4])), Drift { growth: 1.0, distance: 0.0 });
    }

    #[test]
    fn a_gradient_out_of_proportion_is_left_out_and_norms_that_grow_for_good_are_let_through() {
        let mut norms = GradNorms::default();
        assert!((0..20).all(|_| norms.outlier(1.0, 5.0).is_none()));
        let why = norms.outlier(30.0, 5.0).unwrap();
        assert_eq!(why, "the gradient norm is 30.000, over 5 times 1.000, the mean of those before");
        assert!(norms.outlier(1.0, 5.0).is_none());
        let left_out = (0..50).filter(|_| norms.outlier(30.0, 5.0).is_some()).count();
        assert!((1..10).contains(&left_out), "{left_out}");
        assert_eq!(GradNorms::from_json(&norms.to_json()).unwrap(), norms);
        // The first steps of a run are like nothing before, and without a limit nothing is.
        assert!(GradNorms::default().outlier(1e9, 5.0).is_none() && norms.outlier(1e9, 0.0).is_none());
    }

    #[test]
    fn a_rule_ends_a_run_that_has_gone_further_and_says_which() {
        let line =
            json!({ "velocity_growth": 1.3, "velocity_distance": 0.02, "zero_variance_groups": 9, "groups": 10 });
        assert_eq!(gone_too_far(&Stop::default(), &line), None);
        let rules = Stop { max_velocity_growth: 1.25, max_flat_groups: 0.8, ..Stop::default() };
        let why = gone_too_far(&rules, &line).unwrap();
        assert_eq!(
            why,
            "velocities have grown by a factor of 1.3000, over 1.25; to go on, --set stop.max_velocity_growth=0"
        );
        let why = gone_too_far(&Stop { max_flat_groups: 0.8, ..Stop::default() }, &line).unwrap();
        assert!(why.starts_with("the share of groups without a difference in reward is 0.9000, over 0.8"), "{why}");
        assert_eq!(gone_too_far(&Stop { max_velocity_distance: 0.02, ..Stop::default() }, &line), None);
        assert_eq!(gone_too_far(&rules, &json!({})), None);
    }
}
