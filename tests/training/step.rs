use std::path::Path;

use engine::io::{TensorFile, read_json};
use serde_json::Value;

use super::{assert_success, engine};
use crate::parity::{fixture, read, relative_error};

/// What `engine step` writes for a case of the oracle in `folder`, with `method` in the config; and what the case holds.
fn step(folder: &Path, method: &str, device: &str) -> (TensorFile, TensorFile) {
    let settings: Value = read_json(&folder.join("case.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The command wants a model folder; the fixture is a transformer alone.
    let model = dir.path().join("model");
    std::fs::create_dir_all(model.join("scheduler")).unwrap();
    let index = r#"{"_class_name": "StableDiffusion3Pipeline", "transformer": ["", ""], "scheduler": ["", ""]}"#;
    std::fs::write(model.join("model_index.json"), index).unwrap();
    std::os::unix::fs::symlink(fixture(settings["model"].as_str().unwrap()), model.join("transformer")).unwrap();
    let scheduler = fixture("pipeline/no_t5/scheduler/scheduler_config.json");
    std::fs::copy(scheduler, model.join("scheduler/scheduler_config.json")).unwrap();
    let config = dir.path().join("step.toml");
    let text = format!(
        "algorithm = '{}'\nmodel = '{}'\nnum_epochs = 1\nprompts = {{ train = 'none', eval = 'none' }}\nrewards = {{ geneval = 1.0 }}\n\
         lora = {{ rank = {}, alpha = {}.0, targets = {} }}\n{method}",
        settings["algorithm"].as_str().unwrap_or("ram"),
        model.display(),
        settings["rank"],
        settings["alpha"],
        settings["targets"],
    );
    std::fs::write(&config, text).unwrap();
    let (inputs, outputs) = (folder.join("io.safetensors"), dir.path().join("out.safetensors"));
    let path = |p: &Path| p.to_str().unwrap().to_string();
    assert_success(&engine(&[
        "step",
        "--config",
        &path(&config),
        "--inputs",
        &path(&inputs),
        "--outputs",
        &path(&outputs),
        "--device",
        device,
    ]));
    (TensorFile::open(&outputs).unwrap(), TensorFile::open(&inputs).unwrap())
}

/// `engine step` on one of the oracle's cases; checks everything it writes that the oracle has under `prefix`.
fn check(case: &str, form: &str, prefix: &str, device: &str) {
    let folder = fixture("ram_step").join(case);
    let settings: Value = read_json(&folder.join("case.json")).unwrap();
    let multiplier = &settings["reward_multiplier"];
    let method = format!("ram = {{ reward_multiplier = {multiplier}, form = '{form}' }}\n");
    let (got, want) = step(&folder, &method, device);
    let mut gradients = 0;
    for name in got.names() {
        let key = if name.starts_with("velocity") { name.to_string() } else { format!("{prefix}{name}") };
        let expected = read(&want, &key);
        let found = read(&got, name);
        if expected.to_host().iter().all(|v| *v == 0.0) {
            assert!(found.to_host().iter().all(|v| *v == 0.0), "{case} {name}");
            continue;
        }
        let error = relative_error(&found, &expected);
        let bound = if name.starts_with("grad") { 1e-4 } else { 1e-5 };
        assert!(error <= bound, "{case} {form} {name}: {error:e}");
        gradients += usize::from(name.starts_with("grad"));
    }
    assert!(gradients > 0 && got.entry("loss").is_some());
    assert_eq!(got.entry("velocity_old").is_some(), form == "released");
}

#[test]
fn loss_velocities_and_gradients_match_autograd_for_every_configuration() {
    for case in ["a", "b", "c"] {
        check(case, "released", "", "cpu");
    }
}

#[test]
fn the_papers_form_matches_autograd() {
    check("a", "paper", "paper.", "cpu");
}

#[test]
fn on_the_interpreted_gpu_they_match_autograd_too() {
    check("b", "released", "", "vm");
}

/// Losses as the published programs have them, elementwise, and their gradients by autograd.
fn check_method(case: &str, device: &str) {
    let folder = fixture("method_step").join(case);
    let settings: Value = read_json(&folder.join("case.json")).unwrap();
    let (got, want) = step(&folder, settings["tables"].as_str().unwrap(), device);
    let mut gradients = 0;
    for name in got.names().filter(|name| *name != "ratio") {
        let (found, expected) = (read(&got, name), read(&want, name));
        let error = relative_error(&found, &expected);
        let bound = if name.starts_with("grad") { 1e-4 } else { 1e-5 };
        assert!(error <= bound, "{case} {name}: {error:e}");
        gradients += usize::from(name.starts_with("grad"));
    }
    assert!(gradients > 0 && got.entry("loss").is_some());
}

/// Methods of single samples, of pairs and groups, and of the reward's gradient.
const CASES: [&str; 18] = [
    "awm",
    "awm_off_policy",
    "nft",
    "flow_grpo",
    "cps",
    "grpo_guard",
    "rsm",
    "rsm_ppo", //
    "sft",
    "rwr",
    "dpo",
    "dgpo",
    "dgpo_old",
    "crd",
    "crd_softmax", //
    "rsm_first_order",
    "rsm_first_order_square",
    "rsm_first_order_one_step",
];

#[test]
fn every_method_s_loss_and_gradients_match_autograd() {
    CASES.into_iter().for_each(|case| check_method(case, "cpu"));
}

/// Guidance, also of the reference alone, rows that are seen together, and lagged adapters.
#[test]
fn on_the_interpreted_gpu_every_method_matches_autograd_too() {
    CASES.into_iter().for_each(|case| check_method(case, "vm"));
}
