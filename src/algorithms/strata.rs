//! Times of training points that few of them cover the way from noise to image with: one in each part of a range.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::logistic::sigmoid;
use crate::config::method::{TimeType, Times};
use crate::device::philox::Stream;
use crate::rollout::schedule::Schedule;

/// Levels of training, of which [`TimeType::LogitNormal1000`] draws.
const LEVELS: f64 = 1000.0;

/// The times of one image, or of one group.
pub(super) enum Strata {
    /// Any of these noise levels; an index from each stratum.
    Grid { times: Vec<f32>, strata: Vec<[usize; 2]> },
    /// `count` numbers of the unit interval, and what makes times of them.
    Continuous { count: usize, schedule: Schedule, of: Continuous },
}

/// What makes a time of a number of the unit interval.
#[derive(Clone, Copy)]
pub(super) enum Continuous {
    /// Uniform between these two, then shifted.
    Uniform([f64; 2]),
    /// Logit-normal and shifted, then brought between these two.
    LogitNormal([f64; 2]),
    /// One by one: logit-normal between these two, rounded to a level of training, then shifted.
    Levels([f64; 2]),
}

impl Strata {
    /// As `keys` say, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout, or none of its levels in the range.
    pub(super) fn new(keys: Times, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let times = schedule.levels(steps, tokens)?;
        // Counted from noise in the keys, from the image in times.
        let [low, high] = [1.0 - keys.range[1], 1.0 - keys.range[0]];
        // A hair wider, as levels are rounded.
        let first = times.partition_point(|t| f64::from(*t) > high + 1e-6);
        let end = times.partition_point(|t| f64::from(*t) >= low - 1e-6);
        ensure!(
            first < end,
            "none of the rollout's {steps} noise levels is between {high:.4} and {low:.4}: timestep_range"
        );
        Ok(Self::within(keys, times, first..end, schedule))
    }

    /// The same, discrete ones from the `levels` numbered `steps`.
    pub(super) fn within(keys: Times, levels: Vec<f32>, steps: Range<usize>, schedule: &Schedule) -> Self {
        let (count, [low, high]) = (keys.count, [1.0 - keys.range[1], 1.0 - keys.range[0]]);
        let continuous = |of| Self::Continuous { count, schedule: schedule.clone(), of };
        let (skipped, with_init) = match keys.time_type {
            TimeType::Discrete => (0, false),
            TimeType::DiscreteWoInit => (1, false),
            TimeType::DiscreteWithInit => (1, true),
            TimeType::LogitNormal => return continuous(Continuous::LogitNormal([low, high])),
            TimeType::Uniform => return continuous(Continuous::Uniform([low, high])),
            TimeType::LogitNormal1000 => return continuous(Continuous::Levels(keys.range)),
        };
        let first = (steps.start + skipped).min(steps.end - 1);
        let parts = if with_init { count - 1 } else { count };
        let bound = |i: usize| first + (steps.end - first) * i / parts.max(1);
        let init = with_init.then_some([steps.start, steps.start + 1]);
        let strata = init.into_iter().chain((0..parts).map(|i| [bound(i), bound(i + 1)])).collect();
        Self::Grid { times: levels, strata }
    }

    /// A time from each stratum.
    pub(super) fn draw(&self, stream: &mut Stream) -> Vec<f32> {
        match self {
            Self::Grid { times, strata } => {
                let from = |[low, high]: &[usize; 2]| low + stream.below((high - low).max(1) as u32) as usize;
                strata.iter().map(from).map(|i| times[i.min(times.len() - 1)]).collect()
            }
            Self::Continuous { count, schedule, of } => {
                let between = |[low, high]: [f64; 2], u: f64| low + (high - low) * u;
                let time = |i: usize| {
                    let u = f64::from(stream.uniform());
                    let stratified = (i as f64 + u) / *count as f64;
                    match *of {
                        Continuous::Uniform(range) => schedule.trained(between(range, stratified)),
                        Continuous::LogitNormal(range) => {
                            between(range, schedule.trained(sigmoid(normal_quantile(stratified)))).max(0.01)
                        }
                        Continuous::Levels(range) => {
                            let level = (between(range, sigmoid(normal_quantile(u))) * LEVELS).floor();
                            schedule.trained(1.0 - level / LEVELS)
                        }
                    }
                };
                (0..*count).map(time).map(|t| t as f32).collect()
            }
        }
    }
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
        let keys = Times { time_type, count: 6, range: [0.0, if time_type == TimeType::Uniform { 0.8 } else { 1.0 }] };
        let schedule = Schedule::with_shift(3.0);
        Strata::within(keys, schedule.levels(14, 1024).unwrap(), 0..12, &schedule)
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

    /// §16.1: a range is a part of the time axis, counted from noise, whichever convention code has inside.
    #[test]
    fn a_range_is_a_part_of_the_way_from_noise_to_image() {
        let schedule = Schedule::with_shift(3.0);
        let grid = schedule.sigmas(10, 1024).unwrap();
        let mut stream = Key::new(3, Purpose::Timestep).stream();
        let mut seen = |time_type, range, rounds| -> Vec<f32> {
            let keys = Times { time_type, count: 4, range };
            let strata = Strata::new(keys, &schedule, 10, 1024).unwrap();
            let mut all: Vec<f32> = (0..rounds).flat_map(|_| strata.draw(&mut stream)).collect();
            all.sort_by(f32::total_cmp);
            all
        };
        // The published settings of DGPO: the levels of at least 0.4.
        let mut discrete = seen(TimeType::Discrete, [0.0, 0.6], 200);
        discrete.dedup();
        assert_eq!(discrete, grid[..8].iter().rev().copied().collect::<Vec<_>>());
        let late = seen(TimeType::Discrete, [0.1, 1.0], 200);
        assert_eq!((late[0], *late.last().unwrap()), (grid[9], grid[3]));
        let logit = seen(TimeType::LogitNormal, [0.0, 0.6], 200);
        assert!(logit[0] >= 0.4 && *logit.last().unwrap() <= 1.0, "{} {}", logit[0], logit.last().unwrap());
        // More towards noise than towards the image: the shift goes with it.
        assert!(logit[400] > 0.7, "{}", logit[400]);
        let keys = Times { time_type: TimeType::Discrete, count: 1, range: [0.995, 1.0] };
        let e = Strata::new(keys, &schedule, 10, 1024).err().unwrap().to_string();
        assert!(e.contains("between 0.0050 and 0.0000"), "{e}");
    }

    /// §15.3: the index of a level is a logit-normal number in thousandths, and its level the shifted rest.
    #[test]
    fn levels_of_training_are_drawn_as_the_logistic_function_of_normal_numbers() {
        const N: usize = 20_000;
        let schedule = Schedule::with_shift(3.0);
        let keys = Times { time_type: TimeType::LogitNormal1000, count: 1, range: [0.0, 1.0] };
        let strata = Strata::new(keys, &schedule, 40, 1024).unwrap();
        let mut stream = Key::new(4, Purpose::Timestep).stream();
        let levels: Vec<f64> = (0..N).map(|_| f64::from(strata.draw(&mut stream)[0])).collect();
        let index = |t: f64| 1000.0 * (1.0 - t / (3.0 - 2.0 * t));
        assert!(levels.iter().all(|t| (index(*t) - index(*t).round()).abs() < 1e-2));
        // Quantiles of the standard normal distribution: within four standard errors of a proportion.
        for (z, share) in [(-1.0, 0.158_655), (0.0, 0.5), (0.7, 0.758_036)] {
            let below = levels.iter().filter(|t| index(**t).round() < (1000.0 * sigmoid(z)).floor()).count() as f64;
            let rounding = 1e-3 * 0.4 / (sigmoid(z) * (1.0 - sigmoid(z)));
            assert!((below / N as f64 - share).abs() < 2.0 / (N as f64).sqrt() + rounding, "{z}: {below}");
        }
    }
}
