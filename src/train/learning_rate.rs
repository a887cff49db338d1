//! How the learning rate changes over the optimiser updates of a run, as diffusers' `get_scheduler`
//! (`diffusers/optimization.py`) has it.

use std::f64::consts::PI;

use crate::config::optimizer::{LrSchedule, Optimizer};

/// A run's learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    base: f64,
    schedule: LrSchedule,
    warmup: u64,
    /// Optimiser updates of the whole run.
    total: u64,
}

impl LearningRate {
    /// That of a run of `total` optimiser updates.
    pub fn new(keys: &Optimizer, total: u64) -> Self {
        Self { base: keys.lr, schedule: keys.schedule, warmup: u64::from(keys.warmup), total }
    }

    /// The learning rate of the update that follows `updates` others.
    ///
    /// Rises in a line from 0, which the first update of a warm-up has; then stays, or falls to 0, which the update
    /// after the last would have.
    pub fn after(&self, updates: u64) -> f64 {
        let (n, warmup, total) = (updates as f64, self.warmup as f64, self.total as f64);
        if updates < self.warmup {
            return self.base * (n / warmup);
        }
        let rest = (total - warmup).max(1.0);
        self.base
            * match self.schedule {
                LrSchedule::Constant => 1.0,
                LrSchedule::Linear => ((total - n) / rest).max(0.0),
                LrSchedule::Cosine => (0.5 * (1.0 + (PI * 0.5 * 2.0 * ((n - warmup) / rest)).cos())).max(0.0),
            }
    }

    /// What a warning says if the run ends before its warm-up does.
    pub fn never_warm(&self) -> Option<String> {
        (self.warmup >= self.total && self.warmup > 0).then(|| {
            format!(
                "optimizer.warmup is {}, but the run has only {} optimiser updates: optimizer.lr is never reached",
                self.warmup, self.total
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::read_json;

    /// Learning rates of diffusers (`tools/oracle/lr_schedule.py`).
    #[derive(serde::Deserialize)]
    struct Run {
        schedule: LrSchedule,
        warmup: u32,
        total: u64,
        lr: f64,
        values: Vec<f64>,
    }

    #[test]
    fn learning_rates_are_those_of_diffusers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lr_schedule.json");
        let runs: Vec<Run> = read_json(&path).unwrap();
        for kind in [LrSchedule::Constant, LrSchedule::Linear, LrSchedule::Cosine] {
            assert!(runs.iter().filter(|r| r.schedule == kind && r.values.len() as u64 == r.total + 1).count() >= 3);
        }
        for Run { schedule, warmup, total, lr, values } in runs {
            let rate = LearningRate::new(&Optimizer { lr, schedule, warmup, ..Optimizer::default() }, total);
            for (n, want) in values.iter().enumerate() {
                let got = rate.after(n as u64);
                // Two libraries' cosines may differ in their last bit, near 0 by that of 1.
                assert!((got - want).abs() <= lr * f64::EPSILON, "{schedule:?} {warmup} {total} {n}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_constant_rate_without_warm_up_has_the_bits_of_the_key() {
        let keys = Optimizer { lr: 3e-4, ..Optimizer::default() };
        assert!((0..9).all(|n| LearningRate::new(&keys, 5).after(n).to_bits() == 3e-4f64.to_bits()));
    }

    #[test]
    fn a_run_that_ends_before_its_warm_up_is_warned_of() {
        let warning = |warmup| LearningRate::new(&Optimizer { warmup, ..Optimizer::default() }, 5).never_warm();
        assert_eq!([0, 4].map(warning), [None, None]);
        assert!(warning(5).unwrap().starts_with("optimizer.warmup is 5, but the run has only 5 optimiser updates"));
    }
}
