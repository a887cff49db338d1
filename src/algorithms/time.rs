//! The times of training points.

use anyhow::Result;

use crate::config::method::Grid;
use crate::device::philox::Stream;
use crate::rollout::schedule::Schedule;

/// Times of density `p(t) ∝ t^power`, continuous or on a grid whose points have that weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    power: f32,
    /// Times and the sum of weights up to each; empty where times are continuous.
    grid: Vec<(f32, f64)>,
}

impl Times {
    /// Times on `grid`, for rollouts of `steps` steps on `schedule` of images of `tokens`.
    ///
    /// # Errors
    /// If the schedule has no such rollout.
    pub fn new(power: f32, grid: Grid, schedule: &Schedule, steps: usize, tokens: usize) -> Result<Self> {
        let linear = || (1..=1000).map(|i| f64::from(i) / 1000.0);
        let times: Vec<f32> = match grid {
            Grid::Continuous => Vec::new(),
            Grid::Linear1000 => linear().map(|t| t as f32).collect(),
            Grid::Scheduler1000 => linear().map(|t| schedule.trained(t) as f32).collect(),
            Grid::Rollout => schedule.levels(steps, tokens)?,
        };
        let mut sum = 0.0;
        let weighted = times.into_iter().map(|t| {
            sum += f64::from(t).powf(f64::from(power));
            (t, sum)
        });
        Ok(Self { power, grid: weighted.collect() })
    }

    /// The next time of `stream`.
    pub fn draw(&self, stream: &mut Stream) -> f32 {
        let u = f64::from(stream.uniform());
        let Some((_, all)) = self.grid.last() else {
            // Roots are rounded from f64, so that they do not depend on the system's library.
            return u.powf(1.0 / (1.0 + f64::from(self.power))) as f32;
        };
        let at = self.grid.partition_point(|(_, sum)| *sum <= u * all);
        self.grid[at.min(self.grid.len() - 1)].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::philox::{Key, Purpose};

    fn moments(times: &Times) -> [f64; 2] {
        const N: usize = 100_000;
        let mut stream = Key::new(3, Purpose::Timestep).stream();
        let t: Vec<f64> = (0..N).map(|_| f64::from(times.draw(&mut stream))).collect();
        assert!(t.iter().all(|t| *t > 0.0 && *t <= 1.0));
        [1, 2].map(|n| t.iter().map(|t| t.powi(n)).sum::<f64>() / N as f64)
    }

    fn times(power: f32, grid: Grid, steps: usize) -> Times {
        Times::new(power, grid, &Schedule::with_shift(3.0), steps, 1024).unwrap()
    }

    /// Four standard errors of a mean of 100,000 times.
    const ERROR: f64 = 4.0 * 0.3 / 316.0;

    /// Density 2t has mean 2/3 and second moment 1/2.
    #[test]
    fn times_have_the_density_two_t() {
        let [mean, square] = moments(&times(1.0, Grid::Continuous, 20));
        assert!((mean - 2.0 / 3.0).abs() < ERROR && (square - 0.5).abs() < ERROR, "{mean} {square}");
        let [mean, _] = moments(&times(3.0, Grid::Continuous, 20));
        assert!((mean - 0.8).abs() < ERROR);
    }

    /// The means that the specification gives for density t on the grids (§4.2).
    #[test]
    fn means_on_the_grids_are_the_published_ones() {
        for (grid, want) in [(Grid::Linear1000, 0.667), (Grid::Scheduler1000, 0.781), (Grid::Rollout, 0.79)] {
            let [mean, _] = moments(&times(1.0, grid, 20));
            assert!((mean - want).abs() < ERROR + 5e-3, "{grid:?}: {mean}");
        }
    }

    #[test]
    fn only_times_of_the_grid_are_drawn() {
        let grid = Schedule::with_shift(3.0).sigmas(5, 1024).unwrap();
        let times = times(1.0, Grid::Rollout, 5);
        let mut stream = Key::new(1, Purpose::Timestep).stream();
        let drawn: Vec<f32> = (0..1000).map(|_| times.draw(&mut stream)).collect();
        assert!(drawn.iter().all(|t| grid[..5].contains(t)));
        assert!(grid[..4].iter().all(|t| drawn.contains(t)));
    }
}
