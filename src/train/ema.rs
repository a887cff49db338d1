//! The average that is evaluated and published.

use crate::models::lora::{AdapterBank, Slot};
use crate::ops::lerp;

/// The schedule of the average that evaluation and export use (spec §2.6, `EMAModuleWrapper` of Flow-GRPO). The
/// average is an adapter of its own, so nothing is swapped in or out of the trained one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalEma {
    /// Largest decay, reached once the warm-up allows it.
    pub decay: f64,
    /// Optimiser steps from one update to the next.
    pub interval: u64,
    /// Optimiser steps seen so far.
    pub steps: u64,
}

impl EvalEma {
    /// A schedule before its first step.
    pub fn new(decay: f64, interval: u64) -> Self {
        Self { decay, interval, steps: 0 }
    }

    /// `min(decay, (1 + n)/(10 + n))` after `n` optimiser steps.
    pub fn decay_now(&self) -> f64 {
        let n = self.steps as f64;
        self.decay.min((1.0 + n) / (10.0 + n))
    }

    /// Call once after every optimiser step: counts it and, when `interval` has come round, moves the average towards the
    /// trained adapter. Returns whether it did. The first of every 8 comes after step 7: the published class counts from 0.
    pub fn update(&mut self, bank: &mut AdapterBank) -> bool {
        self.steps += 1;
        let due = (self.steps + 1).is_multiple_of(self.interval.max(1));
        if due {
            let (average, theta) = bank.pair_mut(Slot::Average, Slot::Theta);
            lerp::forward(average, theta, self.decay_now() as f32);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::models::lora::{Layout, Module};
    use crate::ops::testing::{max_error, random, wide};

    /// A bank whose average is drawn with seed 1.
    fn bank() -> AdapterBank {
        let modules = [Module { name: "m".into(), inputs: 5, outputs: 4, trainable: true }];
        let mut bank = AdapterBank::new(Arc::new(Layout::new(&modules, [Some(3)])), 2.0);
        bank.set(Slot::Average, random(&[27], 1));
        bank
    }

    #[test]
    fn t12_evaluation_average_matches_its_closed_form_after_five_updates() {
        for interval in [1, 3, 8] {
            let (mut bank, mut ema) = (bank(), EvalEma::new(0.3, interval));
            let mut want = wide(bank.numbers(Slot::Average));
            let mut updates = 0;
            for step in 1..=5 * interval {
                bank.set(Slot::Theta, random(&[27], 1 + step));
                if ema.update(&mut bank) {
                    updates += 1;
                    // The counter n is one more than the number of the step that was just taken.
                    let decay = ((1.0 + step as f64) / (10.0 + step as f64)).min(0.3);
                    let theta = wide(bank.numbers(Slot::Theta));
                    want.iter_mut().zip(theta).for_each(|(w, t)| *w = decay * *w + (1.0 - decay) * t);
                }
            }
            assert_eq!(updates, 5, "interval {interval}");
            assert!(max_error(bank.numbers(Slot::Average), &want) < 1e-6, "interval {interval}");
        }
    }
}
