//! The noise levels a sampler visits.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::io::read_json;

/// More than any sampler needs: the models were trained with 1000 noise levels.
const MOST_STEPS: usize = 10_000;

/// Fails unless a sampler can take this many `steps`; `what` says where they were asked for.
///
/// # Errors
/// Names `what`, what was found, and what is possible.
pub fn check_steps(what: &str, steps: usize) -> Result<()> {
    ensure!((1..=MOST_STEPS).contains(&steps), "{what} is {steps}, expected 1 to {MOST_STEPS}");
    Ok(())
}

/// The flow-matching Euler schedule of SD3 (`FlowMatchEulerDiscreteScheduler` of diffusers) with a static shift.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The time shift `s` in `σ = s·r/(1 + (s − 1)·r)`.
    pub shift: f64,
    /// Steps the model was trained with; its time input is `σ` times this.
    pub train_steps: usize,
}

impl Schedule {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and the key if the scheduler is another one or uses an option that SD3 does not.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("scheduler_config.json");
        let config: Value = read_json(&path)?;
        let file = path.display();
        const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
        match config["_class_name"].as_str() {
            Some(CLASS) | None => {}
            Some(other) => bail!("{file}: _class_name is '{other}', only {CLASS} is supported"),
        }
        for key in [
            "use_dynamic_shifting",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "invert_sigmas",
            "stochastic_sampling",
        ] {
            ensure!(!config[key].as_bool().unwrap_or(false), "{file}: {key} is not supported");
        }
        ensure!(config["shift_terminal"].is_null(), "{file}: shift_terminal is not supported");
        let number = |key: &str, default: f64| match &config[key] {
            Value::Null => Ok(default),
            v => v.as_f64().with_context(|| format!("{file}: {key} is {v}, expected a number")),
        };
        let (shift, steps) = (number("shift", 1.0)?, number("num_train_timesteps", 1000.0)?);
        ensure!(shift > 0.0 && steps >= 1.0, "{file}: shift {shift} and num_train_timesteps {steps} must be positive");
        Ok(Self { shift, train_steps: steps as usize })
    }

    /// The noise level that stands for `r` of the way from image to noise: `s·r/(1 + (s − 1)·r)`.
    pub fn shifted(&self, r: f64) -> f64 {
        self.shift * r / (1.0 + (self.shift - 1.0) * r)
    }

    /// The `steps + 1` noise levels from 1 to 0. The end-point is shifted twice, as in diffusers: the grid runs from
    /// `s·1/(…)` to the shifted last training level, and is then shifted itself.
    pub fn sigmas(&self, steps: usize) -> Vec<f32> {
        let last = f64::from(self.shifted(f64::from(1.0 / self.train_steps as f32)) as f32);
        let mut sigmas: Vec<f32> = (0..steps)
            .map(|i| {
                let along = if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
                self.shifted(1.0 + along * (last - 1.0)) as f32
            })
            .collect();
        sigmas.push(0.0);
        sigmas
    }

    /// The model's time input at noise level `sigma`.
    pub fn timestep(&self, sigma: f32) -> f32 {
        sigma * self.train_steps as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SD3: Schedule = Schedule { shift: 3.0, train_steps: 1000 };

    /// One grid of diffusers' scheduler (`tools/oracle/schedule.py`).
    #[derive(serde::Deserialize)]
    struct Grid {
        shift: f64,
        steps: usize,
        sigmas: Vec<f32>,
        timesteps: Vec<f32>,
    }

    /// T1 of the algorithms' specification.
    #[test]
    fn t1_grids_are_those_of_diffusers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedule.json");
        let grids: Vec<Grid> = read_json(&path).unwrap();
        assert!(grids.len() >= 9);
        for grid in grids {
            let schedule = Schedule { shift: grid.shift, train_steps: 1000 };
            let sigmas = schedule.sigmas(grid.steps);
            assert_eq!(sigmas.len(), grid.sigmas.len());
            // diffusers rounds some intermediate results to f32: an ulp or two.
            let close = |a: f32, b: f32| (a - b).abs() <= 2.5 * f32::EPSILON * b;
            assert!(sigmas.iter().zip(&grid.sigmas).all(|(a, b)| close(*a, *b)), "{}: {sigmas:?}", grid.steps);
            assert!(sigmas.iter().zip(&grid.timesteps).all(|(a, b)| close(schedule.timestep(*a), *b)));
        }
    }

    /// The grid as the specification prints it.
    #[test]
    fn t1_ten_steps_have_the_published_values() {
        let want = [1.0, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0.0];
        let got = SD3.sigmas(10);
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(g, w): (_, f32)| (g - w).abs() <= 1e-6),
            "{got:?}"
        );
    }

    #[test]
    fn one_step_goes_from_noise_to_image() {
        assert_eq!(SD3.sigmas(1), [1.0, 0.0]);
    }
}
