//! Stratified times: one in each part of a range, so that few of them cover it.

use anyhow::Result;

use crate::config::method::{AwmKeys, TimeType};
use crate::device::philox::Stream;
use crate::rollout::schedule::Schedule;

/// The times of one image.
pub(super) enum Strata {
    /// Any of these noise levels; an index from each stratum.
    Grid { times: Vec<f32>, strata: Vec<[usize; 2]> },
    /// `count` strata of the unit interval, and what makes a time of a number there.
    Continuous { count: usize, schedule: Schedule, of: fn(f64, &Schedule) -> f64 },
}

impl Strata {
    pub(super) fn new(keys: &AwmKeys, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let count = keys.num_timesteps;
        let continuous = |of| Ok(Self::Continuous { count, schedule: schedule.clone(), of });
        let (first, with_init) = match keys.time_type {
            TimeType::Discrete => (0, false),
            TimeType::DiscreteWoInit => (1, false),
            TimeType::DiscreteWithInit => (1, true),
            TimeType::LogitNormal => return continuous(|u, s| s.trained(sigmoid(normal_quantile(u))).max(0.01)),
            TimeType::Uniform => return continuous(|u, s| s.trained(0.2 + 0.8 * u)),
        };
        let times = schedule.levels(steps, tokens)?;
        let last = ((steps as f64 * keys.timestep_fraction) as usize).clamp(1, times.len());
        let first = first.min(last - 1);
        let parts = if with_init { count - 1 } else { count };
        let bound = |i: usize| first + (last - first) * i / parts.max(1);
        let init = with_init.then_some([0, 1]);
        let strata = init.into_iter().chain((0..parts).map(|i| [bound(i), bound(i + 1)])).collect();
        Ok(Self::Grid { times, strata })
    }

    /// A time from each stratum.
    pub(super) fn draw(&self, stream: &mut Stream) -> Vec<f32> {
        match self {
            Self::Grid { times, strata } => {
                let from = |[low, high]: &[usize; 2]| low + stream.below((high - low).max(1) as u32) as usize;
                strata.iter().map(from).map(|i| times[i.min(times.len() - 1)]).collect()
            }
            Self::Continuous { count, schedule, of } => {
                let u = |i: usize, stream: &mut Stream| (i as f64 + f64::from(stream.uniform())) / *count as f64;
                (0..*count).map(|i| of(u(i, stream), schedule) as f32).collect()
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The number below which a standard normal one is with probability `p`: bisection of its distribution, the error of which is
/// below 1e-9.
fn normal_quantile(p: f64) -> f64 {
    let p = p.clamp(1e-9, 1.0 - 1e-9);
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The distribution of a standard normal number, by its series around 0 (Marsaglia 2004).
fn normal_cdf(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() && k < 400.0 {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::philox::{Key, Purpose};

    fn strata(time_type: TimeType) -> Strata {
        let keys = AwmKeys { time_type, ..AwmKeys::default() };
        Strata::new(&keys, &Schedule::with_shift(3.0), 14, 1024).unwrap()
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, want) in [(0.5, 0.0), (0.975, 1.959_963_984_540), (0.001, -3.090_232_306_168), (0.9, 1.281_551_565_545)]
        {
            assert!((normal_quantile(p) - want).abs() < 1e-9, "{p}: {}", normal_quantile(p));
        }
    }

    /// Boundaries 1, 2, 4, 6, 8, 10, 12 of fourteen steps: the published settings.
    #[test]
    fn every_stratum_of_the_rollout_gives_one_time() {
        let grid = Schedule::with_shift(3.0).sigmas(14, 1024).unwrap();
        let bounds = [1, 2, 4, 6, 8, 10, 12];
        let (mut stream, mut seen) = (Key::new(1, Purpose::Timestep).stream(), std::collections::BTreeSet::new());
        for _ in 0..300 {
            let times = strata(TimeType::DiscreteWoInit).draw(&mut stream);
            assert_eq!(times.len(), 6);
            for (i, t) in times.iter().enumerate() {
                let at = grid.iter().position(|g| g == t).unwrap();
                assert!((bounds[i]..bounds[i + 1]).contains(&at), "{i}: {at}");
                seen.insert(at);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..12).collect::<Vec<_>>());
        assert_eq!(strata(TimeType::DiscreteWithInit).draw(&mut stream)[0], 1.0);
    }

    #[test]
    fn continuous_times_are_stratified_and_shifted() {
        let schedule = Schedule::with_shift(3.0);
        let mut stream = Key::new(2, Purpose::Timestep).stream();
        for _ in 0..200 {
            let times = strata(TimeType::Uniform).draw(&mut stream);
            for (i, t) in times.iter().enumerate() {
                let bound = |i: usize| schedule.trained(0.2 + 0.8 * i as f64 / 6.0) as f32;
                assert!((bound(i)..=bound(i + 1)).contains(t), "{i}: {t}");
            }
            assert!(strata(TimeType::LogitNormal).draw(&mut stream).is_sorted());
        }
    }
}
