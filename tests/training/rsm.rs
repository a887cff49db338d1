//! Whole runs of RSM: images that are forks of trunks, and whole stochastic trajectories.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::rewards::{epochs, failing_at, with_server};
use super::vm::{check_agreement, state};
use super::{assert_success, checkpoint_bytes, train, write_config};
use crate::http::stub::status;

/// Two forks at the first step, an anchor, and three forks at the third.
const BRANCH: &str = "profile = [2, 0, 3, 9], anchors = true, kl_weight = 0.05, clip_range = 0.01";

/// The config of a run of three epochs: two prompts, two seeds of each, five forks of every seed.
fn rsm_config(folder: &Path, keys: &str) -> PathBuf {
    let path = write_config(folder, "sampler = 'flow'\nnoise_level = 0.7");
    let text = std::fs::read_to_string(&path).unwrap();
    let change = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let text = change(text, "algorithm = 'ram'", "algorithm = 'rsm'");
    let text = change(text, "ram = { reward_multiplier = 5.0, num_noisings = 2 }", &format!("rsm = {{ {keys} }}"));
    let text = change(text, "num_inference_steps = 3", "num_inference_steps = 4");
    let text = change(text, "num_images_per_prompt = 3", "num_images_per_prompt = 2");
    std::fs::write(&path, change(text, "\nbatch_size = 3\n", "\nbatch_size = 4\n")).unwrap();
    path
}

/// What every epoch of a run says: rollout and training see the same velocities, so that the policy is the one that sampled.
fn check_on_policy(run: &Path) {
    for line in epochs(run) {
        assert_eq!(line["rollout_train_deviation"], 0.0, "{line}");
        assert_eq!(line["on_policy_ratio_deviation"], 0.0, "{line}");
        assert!(
            line["ratio_deviation"].as_f64().unwrap() > 0.0,
            "the second step is of a policy that has moved: {line}"
        );
        assert!(line["grad_norm"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert_eq!(epochs(run).len(), 3);
}

/// T22, for rollouts of every kind and both losses.
#[test]
fn t22_resuming_gives_the_bytes_of_an_uninterrupted_run() {
    let ppo = format!("{BRANCH}, loss = 'ppo', reweight = 'guard'");
    let whole = "sampler = 'default', clip_range = 0.01, reweight = 'base'";
    let whole_ppo = "sampler = 'default', clip_range = 0.01, loss = 'ppo', reweight = 'pcpo', kl_weight = 0.0";
    for keys in [BRANCH, &ppo, whole, whole_ppo] {
        let dir = tempfile::tempdir().unwrap();
        let config = rsm_config(dir.path(), keys);
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        assert_success(&train(&config, &whole, &[]));
        check_on_policy(&whole);
        assert_success(&train(&config, &parts, &["--set", "num_epochs=1"]));
        assert_success(&train(&config, &parts, &["--threads", "1"]));
        assert_eq!(checkpoint_bytes(&whole, 3), checkpoint_bytes(&parts, 3), "{keys}");
    }
}

#[test]
fn results_do_not_depend_on_threads_rollout_batch_or_checkpointing() {
    let dir = tempfile::tempdir().unwrap();
    let config = rsm_config(dir.path(), &format!("{BRANCH}, loss = 'ppo', reweight = 'base'"));
    let tensors = |name: &str, args: &[&str]| {
        let run = dir.path().join(name);
        assert_success(&train(&config, &run, args));
        state(&run, 3)
    };
    let base = tensors("a", &["--threads", "1"]);
    assert!(base == tensors("b", &["--threads", "3"]), "threads");
    // Of 8 and 12 forks; batches do not fill either.
    assert!(base == tensors("c", &["--set", "rollout.batch_size=5"]), "uneven batches");
    assert!(base == tensors("d", &["--set", "rollout.batch_size=20"]), "one batch");
    assert!(base == tensors("e", &["--set", "train.activation_checkpointing=block"]), "checkpointing");
}

#[test]
fn a_run_on_the_interpreted_gpu_is_the_cpu_s_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    // Of advantages their signs alone: a byte more or less of a picture's file is some percent of what a group's differ by.
    let config = rsm_config(dir.path(), &format!("{BRANCH}, advantage_clip = 0.01"));
    let [cpu, whole, parts] = ["cpu", "whole", "parts"].map(|name| dir.path().join(name));
    assert_success(&train(&config, &cpu, &["--device", "cpu"]));
    assert_success(&train(&config, &whole, &["--device", "vm"]));
    check_on_policy(&whole);
    for (on_vm, on_cpu) in epochs(&whole).iter().zip(&epochs(&cpu)) {
        check_agreement(on_vm, on_cpu, "rsm");
    }
    assert_success(&train(&config, &parts, &["--device", "vm", "--set", "num_epochs=1"]));
    assert_success(&train(&config, &parts, &["--device", "vm", "--set", "rollout.batch_size=5"]));
    assert!(state(&whole, 3) == state(&parts, 3));
}

#[test]
fn forks_are_what_an_epoch_counts_as_images() {
    let dir = tempfile::tempdir().unwrap();
    let config = rsm_config(dir.path(), BRANCH);
    let plan = train(&config, &dir.path().join("none"), &["--dry-run"]);
    assert_success(&plan);
    let said = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(said.contains("images per epoch           2 prompts x 2 seeds x 5 forks = 20"), "{said}");
    assert!(said.contains("training points per epoch  2 prompts x 12 = 24"), "forks and anchors: {said}");
    // One seed of a prompt is enough: forks are compared with one another.
    let run = dir.path().join("run");
    let one = ["--set", "rollout.num_images_per_prompt=1", "rollout.batch_size=5", "num_epochs=1"];
    assert_success(&train(&config, &run, &one));
    let lines = epochs(&run);
    // Two trunks, each with two steps that fork.
    assert_eq!((&lines[0]["groups"], lines.len()), (&json!(4), 1));
}

/// Requests are of a picture each: four of the evaluation, then the forks of the first step.
#[test]
fn a_group_of_forks_without_a_score_is_left_out_and_its_trunk_s_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let ill = failing_at(&[6], || status(500, "too dark"));
    let run = dir.path().join("run");
    let config = with_server(&rsm_config(dir.path(), BRANCH), &ill.url, "on_failure = 'skip_group'");
    assert_success(&train(&config, &run, &["--set", "rollout.batch_size=1", "num_epochs=1"]));
    let line: &Value = &epochs(&run)[0];
    assert_eq!((&line["skipped_groups"], &line["groups"]), (&json!(1), &json!(7)), "{line}");
    assert_eq!(line["on_policy_ratio_deviation"], 0.0, "what is left keeps its rows: {line}");
}

#[test]
fn mistakes_in_the_keys_of_rsm_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = rsm_config(dir.path(), BRANCH);
    let cases: [(&[&str], &str); 5] = [
        (&["rsm.profile=lowsnr2"], "rsm.profile 'lowsnr2' is for 10 steps, and rollout.num_inference_steps is 4"),
        (&["rsm.profile=lowsnr"], "expected a list of 4 fork counts, or 10 steps"),
        (&["rsm.profile=lowsmr"], "no profile 'lowsmr', expected one of base, highsnr"),
        (&["rsm.loss=ppo"], "rsm.reweight is 'fairclip2', which scales the hinge of matching and is not defined"),
        (&["rollout.sampler=cps"], "rollout.sampler is 'cps', expected flow for 'rsm'"),
    ];
    for (set, want) in cases {
        let out = train(&config, &dir.path().join("none"), &[&["--dry-run", "--set"], set].concat());
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{set:?}: {error}");
        assert!(error.contains(want) && error.lines().count() == 1, "{set:?}: {error}");
    }
}
