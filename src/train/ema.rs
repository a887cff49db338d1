//! Averages that follow the trained adapter: the one that is evaluated and published, and the lagged copy that
//! samples.

use crate::models::lora::Adapter;

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

    /// Call once after every optimiser step: counts it and, when `interval` has come round, moves `average` towards
    /// `policy`. Returns whether it did. The first of every 8 comes after step 7: the published class counts from 0.
    pub fn update(&mut self, average: &mut Adapter, policy: &Adapter) -> bool {
        self.steps += 1;
        let due = (self.steps + 1).is_multiple_of(self.interval.max(1));
        if due {
            average.lerp(policy, self.decay_now() as f32);
        }
        due
    }
}

/// How much of the lagged adapter survives `update` (spec §4.5): nothing in update 0, then `rate` more each time
/// (published: 0.01), up to `max` (0.9).
pub fn old_decay(update: u32, rate: f32, max: f32) -> f32 {
    (rate * update as f32).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::lora::Factor;
    use crate::ops::testing::{max_error, random, wide};

    fn adapter(seed: u64) -> Adapter {
        let factor = Factor { a: random(&[3, 5], seed), b: random(&[4, 3], seed + 50) };
        Adapter::from_factors(2.0, vec![None, Some(factor)])
    }

    /// `Σ w_i x_i` where `w` are the weights that successive decays leave to the start (first) and to each policy.
    fn closed_form(start: &Adapter, policies: &[Adapter], decays: &[f64]) -> Vec<Vec<f64>> {
        let weight = |i: usize| {
            let own = if i == 0 { 1.0 } else { 1.0 - decays[i - 1] };
            own * decays[i..].iter().product::<f64>()
        };
        let all: Vec<&Adapter> = std::iter::once(start).chain(policies).collect();
        (0..start.tensors().count())
            .map(|t| {
                let terms = all.iter().enumerate().map(|(i, a)| (weight(i), wide(a.tensors().nth(t).unwrap())));
                terms.fold(vec![0.0; start.tensors().nth(t).unwrap().len()], |sum, (w, x)| {
                    sum.iter().zip(x).map(|(s, x)| s + w * x).collect()
                })
            })
            .collect()
    }

    #[test]
    fn t12_lagged_update_matches_its_closed_form_after_five_epochs() {
        let start = adapter(1);
        let policies: Vec<Adapter> = (2..7).map(adapter).collect();
        // Late epochs, where every term of the sum still counts.
        let epochs = [60, 70, 80, 90, 200];
        let decay = |epoch| old_decay(epoch, 0.01, 0.9);
        assert!((decay(30) - 0.3).abs() < 1e-6 && decay(90) == 0.9 && decay(200) == 0.9);
        let decays: Vec<f64> = epochs.iter().map(|e| f64::from(decay(*e))).collect();
        let mut old = start.clone();
        for (policy, epoch) in policies.iter().zip(epochs) {
            old.lerp(policy, decay(epoch));
        }
        for (got, want) in old.tensors().zip(closed_form(&start, &policies, &decays)) {
            assert!(max_error(got, &want) < 1e-6);
        }
        // Epoch 0 is a copy, bit for bit.
        old.lerp(&policies[0], decay(0));
        assert!(old.tensors().zip(policies[0].tensors()).all(|(o, p)| o.data() == p.data()));
    }

    #[test]
    fn t12_evaluation_average_matches_its_closed_form_after_five_updates() {
        for interval in [1, 3, 8] {
            let start = adapter(1);
            let policies: Vec<Adapter> = (2..2 + 5 * interval).map(adapter).collect();
            let mut ema = EvalEma::new(0.3, interval);
            let mut average = start.clone();
            let updated: Vec<usize> = (0..policies.len()).filter(|i| ema.update(&mut average, &policies[*i])).collect();
            assert_eq!(updated.len(), 5, "interval {interval}");
            let used: Vec<Adapter> = updated.iter().map(|i| policies[*i].clone()).collect();
            // The counter n is one more than the number of the step that was just taken.
            let decays: Vec<f64> =
                updated.iter().map(|i| *i as f64 + 1.0).map(|n| ((1.0 + n) / (10.0 + n)).min(0.3)).collect();
            for (got, want) in average.tensors().zip(closed_form(&start, &used, &decays)) {
                assert!(max_error(got, &want) < 1e-6, "interval {interval}");
            }
        }
    }
}
