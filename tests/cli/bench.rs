//! `engine bench`: what it measures and predicts is there and has the form that its help says; how fast is nobody's promise.

use serde_json::Value;

use crate::training::{assert_success, engine, write_config};

fn positive(of: &Value, keys: &[&str]) {
    for key in keys {
        let value = of[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {of}"));
        assert!(value.is_finite() && value > 0.0, "{key} is {value}");
    }
}

fn measured(of: &Value, least: usize) {
    let measured = of["measured"].as_array().unwrap();
    assert!(measured.len() >= least, "{of}");
    for one in measured {
        assert!(one["name"].is_string(), "{one}");
        positive(one, &["flops", "seconds", "repetitions", "flops_per_second", "share_of_peak"]);
    }
}

#[test]
fn its_json_has_the_keys_of_its_help_for_small_models_and_for_ones_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    for model in [None, Some("model=/nowhere/sd3.5-medium")] {
        let mut args = vec!["bench", "--device", "cpu", "--json", "--seconds", "0.05", "--config"];
        args.push(config.to_str().unwrap());
        args.extend(model.into_iter().flat_map(|key| ["--set", key]));
        let output = engine(&args);
        assert_success(&output);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["device"], "cpu");
        positive(&answer, &["threads", "seconds"]);
        positive(&answer["peak_flops_per_second"], &["f32", "bf16"]);
        measured(&answer, 8);
        let [run] = &answer["runs"].as_array().unwrap()[..] else { panic!("{answer}") };
        assert_eq!(run["config"], config.to_str().unwrap());
        // Before the first epoch, after the second and after the third.
        assert_eq!((&run["epochs"], &run["evaluations"]), (&3.into(), &3.into()));
        positive(run, &["seconds_per_epoch", "images_per_second", "seconds_per_evaluation", "total_seconds"]);
        for phase in ["rollout", "update", "decode"] {
            positive(&run["seconds_per_phase"], &[phase]);
            positive(&run["flops_per_phase"], &[phase]);
        }
        measured(run, 3);
        let is_said = run["assumptions"].as_array().unwrap().iter().any(|a| a.as_str().unwrap().contains("/nowhere"));
        assert_eq!(is_said, model.is_some(), "{run}");
    }
}

#[test]
fn an_interpreted_device_is_refused() {
    let output = engine(&["bench", "--device", "vm"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("--device vm") && error.contains("expected cpu") && error.lines().count() == 1, "{error}");
}
