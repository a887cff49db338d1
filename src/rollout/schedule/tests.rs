use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::io::read_json;

/// One grid of diffusers' scheduler (`tools/oracle/schedule.py`).
#[derive(serde::Deserialize)]
struct Grid {
    config: Value,
    steps: usize,
    tokens: usize,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
    trained: Vec<f32>,
}

fn load(config: &Value) -> Result<Schedule> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("scheduler_config.json"), config.to_string()).unwrap();
    Schedule::load(folder.path())
}

/// T1 of the algorithms' specification, and every key of the scheduler.
#[test]
fn t1_grids_are_those_of_diffusers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedule.json");
    let grids: Vec<Grid> = read_json(&path).unwrap();
    assert!(grids.len() >= 30);
    // diffusers rounds some intermediate results to f32: an ulp or two.
    let close = |a: f32, b: f32| (a - b).abs() <= 2.5 * f32::EPSILON * b;
    for grid in grids {
        let schedule = load(&grid.config).unwrap();
        let sigmas = schedule.sigmas(grid.steps, grid.tokens).unwrap();
        assert_eq!(sigmas.len(), grid.sigmas.len());
        let (config, steps) = (&grid.config, grid.steps);
        assert!(sigmas.iter().zip(&grid.sigmas).all(|(a, b)| close(*a, *b)), "{config} {steps}: {sigmas:?}");
        assert!(sigmas.iter().zip(&grid.timesteps).all(|(a, b)| close(schedule.timestep(*a), *b)), "{config} {steps}");
        let levels = grid.trained.len() as f64 - 1.0;
        let trained = (0..grid.trained.len()).map(|i| schedule.trained(i as f64 / levels) as f32);
        assert!(trained.zip(&grid.trained).all(|(a, b)| close(a, *b)), "{config}");
    }
}

/// The grid as the specification prints it.
#[test]
fn t1_ten_steps_have_the_published_values() {
    let want = [1.0, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0.0];
    let got = Schedule::with_shift(3.0).sigmas(10, 1024).unwrap();
    assert!(got.len() == want.len() && got.iter().zip(want).all(|(g, w): (_, f32)| (g - w).abs() <= 1e-6), "{got:?}");
}

#[test]
fn one_step_goes_from_noise_to_image() {
    for config in [json!({ "shift": 3.0 }), json!({ "shift_terminal": 0.1 }), json!({ "use_dynamic_shifting": true })] {
        assert_eq!(load(&config).unwrap().sigmas(1, 1024).unwrap(), [1.0, 0.0]);
    }
}

#[test]
fn what_a_key_may_not_be_is_said_with_its_name() {
    for (config, want) in [
        (json!({ "_class_name": "FlowMatchHeunDiscreteScheduler" }), "_class_name is 'FlowMatchHeunDiscreteScheduler'"),
        (json!({ "invert_sigmas": true }), "invert_sigmas is not supported"),
        (json!({ "stochastic_sampling": true }), "stochastic_sampling is not supported"),
        (json!({ "use_karras_sigmas": 1 }), "use_karras_sigmas is 1, expected true or false"),
        (
            json!({ "use_karras_sigmas": true, "use_beta_sigmas": true }),
            "use_karras_sigmas and use_beta_sigmas are both true, expected one of them",
        ),
        (json!({ "shift": 0 }), "shift is 0, expected a number above 0"),
        (json!({ "shift_terminal": 1 }), "shift_terminal is 1, expected a number from 0 to below 1"),
        (json!({ "num_train_timesteps": 0.5 }), "num_train_timesteps is 0.5, expected a whole number of at least 1"),
        (
            json!({ "use_dynamic_shifting": true, "time_shift_type": "liner" }),
            "time_shift_type is 'liner', expected 'exponential' or 'linear'; did you mean 'linear'?",
        ),
        (
            json!({ "use_dynamic_shifting": true, "max_image_seq_len": 256 }),
            "base_image_seq_len and max_image_seq_len are both 256",
        ),
    ] {
        let error = load(&config).unwrap_err().to_string();
        assert!(error.contains(&format!("scheduler_config.json: {want}")), "{error}");
    }
    // Keys of other versions and tools are passed over, and null is what a missing key is.
    let known =
        json!({ "_diffusers_version": "0.29", "shift": 3.0, "shift_terminal": null, "prediction_type": "flow" });
    assert_eq!(load(&known).unwrap(), Schedule::with_shift(3.0));
}

#[test]
fn levels_that_do_not_fall_are_refused_and_not_sampled_with() {
    let linear = json!({ "use_dynamic_shifting": true, "time_shift_type": "linear", "max_shift": 40.0 });
    let error = load(&linear).unwrap().sigmas(10, 16).unwrap_err().to_string();
    assert!(error.contains("do not fall from 1 to 0 for 16 tokens and 10 steps"), "{error}");
    let ends = json!({ "use_karras_sigmas": true, "sigma_min": 0.5, "sigma_max": 0.25 });
    assert!(load(&ends).unwrap().sigmas(10, 16).is_err());
}
