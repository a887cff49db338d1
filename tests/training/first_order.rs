//! Runs that follow the gradient of a reward through the decoder and the reward's own network.

use std::path::{Path, PathBuf};

use super::vm::{check_agreement, epochs};
use super::{assert_success, checkpoint_bytes, train, write_config};
use crate::parity::fixture;

/// A config of first-order RSM with the reward `rewards`; `keys` are more of the method's.
fn config(folder: &Path, rewards: &str, keys: &str) -> PathBuf {
    let path = write_config(folder, "");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (old, new) in [
        ("algorithm = 'ram'", "algorithm = 'rsm_first_order'"),
        ("rewards = { jpeg_compressibility = 1.0 }", rewards),
        ("ram = { reward_multiplier = 5.0, num_noisings = 2 }", &format!("rsm_first_order = {{ {keys} }}")),
        ("num_images_per_prompt = 3", "num_images_per_prompt = 1"),
        ("batch_size = 3", "batch_size = 2"),
        ("batch_size = 4", "batch_size = 3"),
    ] {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    std::fs::write(&path, text).unwrap();
    path
}

/// The aesthetic reward on a random model: it looks at no prompt, so that no tokenizer is needed.
fn aesthetic() -> String {
    let (model, head) = (fixture("clip/quick"), fixture("clip_rewards/head.safetensors"));
    format!("rewards.aesthetic = {{ model = '{}', head = '{}', preprocess = 'rsm' }}", model.display(), head.display())
}

/// Settings of small runs, with the gradient taken at both places.
const KEYS: [&str; 2] = [
    "reward_scale = 100.0, updates_per_epoch = 2",
    "reward_scale = 100.0, updates_per_epoch = 2, gradient = 'one_step', schedule = 'square'",
];

#[test]
fn a_run_learns_from_the_gradient_of_a_reward_and_resumes_to_the_same_bytes() {
    for keys in KEYS {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &aesthetic(), keys);
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        assert_success(&train(&config, &whole, &[]));
        assert_success(&train(&config, &parts, &["--set", "num_epochs=1"]));
        assert_success(&train(&config, &parts, &[]));
        assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3), "{keys}");
        let losses: Vec<f64> = epochs(&whole).iter().map(|line| line["loss"].as_f64().unwrap()).collect();
        assert!(losses.len() == 3 && losses.iter().all(|loss| *loss > 0.0), "{keys}: {losses:?}");
    }
}

/// The last step of a rollout ends where its velocity points at, and at pure noise, the first of two, no gradient counts.
#[test]
fn a_step_s_own_gradient_is_the_rollout_s_where_it_is_the_last_step() {
    let dir = tempfile::tempdir().unwrap();
    let keys = "reward_scale = 100.0, updates_per_epoch = 2, gradient_clip = 0.0";
    let config = config(dir.path(), &aesthetic(), keys);
    let of = |gradient: &str, steps: usize| {
        let run = dir.path().join(format!("{gradient}-{steps}"));
        let (gradient, steps) =
            (format!("rsm_first_order.gradient={gradient}"), format!("rollout.num_inference_steps={steps}"));
        assert_success(&train(&config, &run, &["--set", "num_epochs=2", "train.batch_size=2", &gradient, &steps]));
        checkpoint_bytes(&run, 2)
    };
    // A checkpoint says which config it is of; what it learnt is compared.
    let weights = |files: Vec<(String, Vec<u8>)>| -> Vec<(String, Vec<u8>)> {
        files.into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect()
    };
    let [two, own_two, three, own_three] =
        [("terminal", 2), ("one_step", 2), ("terminal", 3), ("one_step", 3)].map(|(g, n)| weights(of(g, n)));
    assert!(!two.is_empty() && two == own_two);
    assert!(three != own_three);
}

/// The decoder's and the reward's backward, and the update, by the kernels.
#[test]
fn an_epoch_on_the_interpreted_gpu_is_the_cpu_s() {
    let dir = tempfile::tempdir().unwrap();
    for (i, keys) in KEYS.into_iter().enumerate() {
        let config = config(dir.path(), &aesthetic(), keys);
        let of = |device: &str| {
            let run = dir.path().join(format!("{device}-{i}"));
            assert_success(&train(&config, &run, &["--device", device, "--set", "num_epochs=1"]));
            epochs(&run).remove(0)
        };
        check_agreement(&of("vm"), &of("cpu"), keys);
    }
}

#[test]
fn a_reward_without_a_gradient_is_refused_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |rewards: &str, want: &str| {
        let output = train(&config(dir.path(), rewards, ""), &dir.path().join("run"), &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(want), "{stderr}");
    };
    let jpeg = "rewards.jpeg_compressibility: it has no gradient, which 'rsm_first_order' follows; those that have one are aesthetic,";
    refused("rewards = { jpeg_compressibility = 1.0 }", jpeg);
    let gdpo = format!("{}\nreward_aggregation = 'gdpo'", aesthetic());
    refused(&gdpo, "reward_aggregation is 'gdpo', but 'rsm_first_order' follows the gradient of the weighted sum");
}
