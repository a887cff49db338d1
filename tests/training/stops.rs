//! Runs that keep their best LoRA, and that rules end before their last epoch.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use super::{assert_success, checkpoint_bytes, copy, engine, train, write_config};

/// The log's evaluations.
fn evaluations(run: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("eval").is_some()).collect()
}

fn best(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("best/best.json")).unwrap()).unwrap()
}

fn said(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_string).collect()
}

/// The value of a line `RESULT key=value`.
fn result(output: &Output, key: &str) -> Option<String> {
    let start = format!("RESULT {key}=");
    said(output).iter().find_map(|line| line.strip_prefix(&start).map(str::to_string))
}

const WEIGHTS: &str = "pytorch_lora_weights.safetensors";

/// A run whose weights are thrown about: its reward rises in the first epoch and then falls.
const WILD: [&str; 6] = ["--set", "num_epochs=5", "eval.every=1", "checkpoint.keep=9", "optimizer.lr=0.5", "seed=1"];

/// As [`write_config`], with more prompts to evaluate.
fn wild_config(folder: &Path) -> PathBuf {
    let config = write_config(folder, "");
    let held_out: String = (0..PROMPTS).map(|n| format!("{n} balls\n")).collect();
    std::fs::write(folder.join("held_out.txt"), held_out).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let [from, to] = ["prompts.txt", "held_out.txt"].map(|name| format!("eval = '{}'", folder.join(name).display()));
    let text = text.replace(&from, &to);
    std::fs::write(&config, text).unwrap();
    config
}

const PROMPTS: usize = 12;

#[test]
fn the_lora_of_the_best_evaluation_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = wild_config(dir.path());
    let run = dir.path().join("run");
    let trained = train(&config, &run, &WILD);
    assert_success(&trained);
    let evaluations = evaluations(&run);
    let reward = |line: &Value| line["eval"]["reward"].as_f64().unwrap();
    let highest = evaluations.iter().map(reward).fold(f64::MIN, f64::max);
    let first = evaluations.iter().find(|line| reward(line) == highest).unwrap();
    let epoch = first["epoch"].as_u64().unwrap();
    assert!(
        (1..5).contains(&epoch),
        "a run in which the best LoRA is another than the last is needed: {evaluations:?}"
    );
    let (about, last) = (best(&run), evaluations.last().unwrap());
    assert_eq!((&about["epoch"], &about["reward"]), (&first["epoch"], &first["eval"]["reward"]));
    assert!(about["standard_error"].as_f64().unwrap() > 0.0);
    assert_eq!(last["best"], serde_json::json!({ "epoch": epoch, "reward": highest }));
    let mean =
        last["prompt_rewards"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).sum::<f64>() / PROMPTS as f64;
    assert!((mean - reward(last)).abs() < 1e-12 * mean.abs());
    assert_eq!(result(&trained, "best_epoch"), Some(epoch.to_string()));
    assert_eq!(result(&trained, "held_out_reward_best"), Some(format!("{highest:.4}")));
    assert_eq!(result(&trained, "stopped_after_epoch"), None);

    // It is the LoRA of that epoch's checkpoint, and evaluates to the same reward.
    let bytes = |folder: PathBuf| std::fs::read(folder.join(WEIGHTS)).unwrap();
    let (checkpoint, exported) = (run.join(format!("checkpoints/epoch-{epoch:06}")), dir.path().join("exported"));
    let [from, to] = [&checkpoint, &exported].map(|p| p.to_str().unwrap());
    assert_success(&engine(&["export", "--checkpoint", from, "--out", to]));
    assert!(bytes(run.join("best")) == bytes(exported));
    assert!(bytes(run.join("best")) != bytes(run.join("lora")));

    // That the reward has fallen since is said once, though it is so at every evaluation.
    let falls = evaluations.iter().filter(|line| line["turned"].is_object()).count();
    let news: Vec<String> =
        said(&trained).into_iter().filter(|l| l.starts_with("held-out reward fell from ")).collect();
    assert!(falls > 1 && news.len() == 1, "{news:?} {evaluations:?}");
    let kept = format!("over {PROMPTS} prompts; the LoRA of epoch {epoch} is in {}", run.join("best").display());
    assert!(news[0].contains(&kept), "{news:?}");
}

/// A run that ends by itself has the same state, log and LoRAs whether it was resumed or not.
#[test]
fn patience_ends_a_run_that_does_not_get_better_the_same_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let config = wild_config(dir.path());
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let stopping = |patience| [&WILD[..], &["num_epochs=40", patience]].concat();
    let ended = train(&config, &whole, &stopping("stop.patience=2"));
    assert_success(&ended);
    let epoch: u32 = result(&ended, "stopped_after_epoch").unwrap().parse().unwrap();
    let all = evaluations(&whole);
    assert!(epoch < 40 && all.last().unwrap()["epoch"] == epoch);
    assert_eq!(all.last().unwrap()["best"]["epoch"], epoch - 2);
    assert_eq!(best(&whole)["epoch"], epoch - 2);
    let reason = format!("stopped after epoch {epoch}: held-out reward has not risen above");
    assert!(said(&ended).iter().any(|line| line.starts_with(&reason)));
    assert!(whole.join("lora").join(WEIGHTS).exists());

    // Again, from one epoch before its end, where one evaluation without a new best had been made.
    copy(&whole, &parts);
    let back = parts.join(format!("checkpoints/epoch-{:06}", epoch - 1));
    let resume = [&stopping("stop.patience=2")[..], &["--resume", back.to_str().unwrap()]].concat();
    let resumed = train(&config, &parts, &resume);
    assert_success(&resumed);
    assert_eq!(result(&resumed, "stopped_after_epoch"), Some(epoch.to_string()));
    assert_eq!(checkpoint_bytes(&whole, epoch), checkpoint_bytes(&parts, epoch));
    let untimed = |run: &Path| {
        let mut lines = evaluations(run);
        lines.iter_mut().for_each(|line| _ = line.as_object_mut().unwrap().remove("elapsed_seconds"));
        lines
    };
    assert_eq!(untimed(&whole), untimed(&parts));
    for file in ["best/best.json", "best/pytorch_lora_weights.safetensors", "lora/pytorch_lora_weights.safetensors"] {
        assert!(std::fs::read(whole.join(file)).unwrap() == std::fs::read(parts.join(file)).unwrap(), "{file}");
    }

    // The same command again trains no more; with more patience it goes on.
    let again = train(&config, &parts, &stopping("stop.patience=2"));
    assert_success(&again);
    assert_eq!(result(&again, "stopped_after_epoch"), Some(epoch.to_string()));
    assert!(!said(&again).iter().any(|line| line.starts_with("epoch ")));
    let epochs = format!("num_epochs={}", epoch + 1);
    let on = [&stopping("stop.patience=0")[..], &[epochs.as_str()]].concat();
    assert_success(&train(&config, &parts, &on));
    assert_eq!(evaluations(&parts).last().unwrap()["epoch"], epoch + 1);
}

#[test]
fn a_run_whose_time_is_up_is_evaluated_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    let keys = ["--set", "num_epochs=100000", "eval.every=0", "checkpoint.every=0", "stop.max_seconds=2"];
    let ended = train(&config, &run, &keys);
    assert_success(&ended);
    let epoch: u32 = result(&ended, "stopped_after_epoch").unwrap().parse().unwrap();
    let last = evaluations(&run).pop().unwrap();
    assert_eq!(last["epoch"], epoch);
    assert!(last["elapsed_seconds"].as_f64().unwrap() >= 2.0);
    assert_eq!(std::fs::read_to_string(run.join("checkpoints/latest")).unwrap().trim(), format!("epoch-{epoch:06}"));
    assert!(run.join("lora").join(WEIGHTS).exists());
    // What was spent before a resume counts.
    let again = train(&config, &run, &keys);
    assert_success(&again);
    assert_eq!(result(&again, "stopped_after_epoch"), Some(epoch.to_string()));
    assert!(!said(&again).iter().any(|line| line.starts_with("epoch ")));
}

#[test]
fn a_policy_that_leaves_the_base_ends_the_run_and_the_same_command_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    let rules = ["--set", "num_epochs=5", "stop.max_velocity_distance=1e-12"];
    let first = train(&config, &run, &rules);
    assert_success(&first);
    // The first epoch begins with the base itself.
    assert_eq!(result(&first, "stopped_after_epoch").as_deref(), Some("2"));
    let said = said(&first);
    let why = said.iter().find(|line| line.starts_with("stopped after epoch 2: the mean square distance")).unwrap();
    assert!(why.ends_with("over 0.000000000001; to go on, --set stop.max_velocity_distance=0"), "{why}");
    let lines = || {
        let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let trained = lines();
    let trained: Vec<&Value> = trained.iter().filter(|line| line.get("loss").is_some()).collect();
    let number = |i: usize, key: &str| trained[i][key].as_f64().unwrap();
    assert_eq!((number(0, "velocity_growth"), number(0, "velocity_distance")), (1.0, 0.0));
    assert!(number(1, "velocity_distance") > 1e-12 && number(0, "group_spread") > 0.0);
    let count = lines().len();
    let again = train(&config, &run, &rules);
    assert_success(&again);
    assert_eq!((result(&again, "stopped_after_epoch").as_deref(), lines().len()), (Some("2"), count));
}

#[test]
fn a_step_whose_gradient_is_out_of_proportion_is_left_out_the_same_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    // Noise of a few points: the gradient's norm is now and then far from its mean.
    let settings = ["--set", "optimizer.max_grad_outlier=1.05", "eval.every=0", "num_epochs=16", "checkpoint.keep=30"];
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    assert_success(&train(&config, &whole, &settings));
    let log = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let skipped = log.lines().filter(|line| line.contains("mean of those before")).count();
    assert!((1..6).contains(&skipped), "{skipped} of the six steps after the first ten");
    let first = [&settings[..3], &["num_epochs=12", "checkpoint.keep=30"]].concat();
    assert_success(&train(&config, &halves, &first));
    assert_success(&train(&config, &halves, &settings));
    assert_eq!(checkpoint_bytes(&whole, 16), checkpoint_bytes(&halves, 16));
}
