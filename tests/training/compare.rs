//! Several configs on the same budget.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{assert_success, engine, train, write_config};

/// The configs `near` and `far` in `folder`, which differ in how far a step goes.
fn configs(folder: &Path) -> [String; 2] {
    ["near", "far"].map(|name| {
        let path = folder.join(format!("{name}.toml"));
        std::fs::rename(write_config(folder, ""), &path).unwrap();
        let lr = if name == "near" { 1e-4 } else { 1e-2 };
        let text = std::fs::read_to_string(&path).unwrap() + &format!("[optimizer]\nlr = {lr}\n");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    })
}

fn compare_command(configs: &[String], output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.args(["compare", "--output-dir"]).arg(output).arg("--config").args(configs);
    command.args(["--seeds", "1", "2"]).args(more);
    command
}

fn compare(configs: &[String], output: &Path, more: &[&str]) -> Output {
    compare_command(configs, output, more).output().unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The columns `config,seed,epoch,updates,images` and the reward of every evaluation: all that does not depend on the clock.
fn evaluations(output: &Path) -> Vec<(String, String)> {
    let table = text(&output.join("evaluations.csv"));
    let parts = table.lines().skip(1).map(|line| line.rsplitn(3, ',').map(str::to_string).collect::<Vec<_>>());
    parts.map(|p| (p[2].clone(), p[0].clone())).collect()
}

#[test]
fn every_config_runs_with_every_seed_as_it_does_alone_and_only_what_is_missing_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, output) = (configs(dir.path()), dir.path().join("compared"));
    let first = compare(&configs, &output, &["--epochs", "1"]);
    assert_success(&first);
    assert_eq!(evaluations(&output).len(), 8);
    let again = compare(&configs, &output, &["--epochs", "2", "--json"]);
    assert_success(&again);
    let found: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(found["rows"][1]["name"], "far");
    assert_eq!(found["rows"][1]["seeds"], 2);

    // Resumed by another budget, each run is the same as one that was trained alone.
    let places: Vec<String> = evaluations(&output).into_iter().map(|(place, _)| place).collect();
    let of = |config: &str, seed: u32| [0, 1, 2].map(|e| format!("{config},{seed},{e},{e},{}", 6 * e));
    let all = [of("near", 1), of("near", 2), of("far", 1), of("far", 2)].concat();
    // Evaluated after epoch 1 when that was the last, and every second epoch.
    assert_eq!(places, all);
    let alone = dir.path().join("alone");
    assert_success(&train(Path::new(&configs[1]), &alone, &["--set", "seed=2", "num_epochs=2"]));
    let lora = "lora/pytorch_lora_weights.safetensors";
    let bytes = |run: &Path| std::fs::read(run.join(lora)).unwrap();
    assert_eq!(bytes(&alone), bytes(&output.join("far/seed-2")));

    let log = output.join("near/seed-1/metrics.jsonl");
    let before = text(&log);
    let third = compare(&configs, &output, &["--epochs", "2"]);
    assert_success(&third);
    assert_eq!(String::from_utf8_lossy(&third.stdout).matches("already there").count(), 4);
    assert_eq!(text(&log), before);
    let table = text(&output.join("table.csv"));
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(std::fs::read(output.join("rewards.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(text(&output.join("rewards.svg")).contains("mean and range of 2 seeds"));
}

#[test]
fn a_budget_of_images_is_as_many_epochs_as_make_them() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("compared");
    assert_success(&compare(&configs(dir.path()), &output, &["--images", "7"]));
    let last = evaluations(&output).pop().unwrap().0;
    assert_eq!(last, "far,2,2,2,12");
}

#[cfg(unix)]
#[test]
fn a_comparison_that_is_interrupted_goes_on_where_it_stopped() {
    use std::os::unix::process::ExitStatusExt;

    let dir = tempfile::tempdir().unwrap();
    let (configs, output) = (configs(dir.path()), dir.path().join("compared"));
    let mut running = compare_command(&configs, &output, &["--epochs", "40", "--set", "eval.every=0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // In the middle of the second run.
    let log = output.join("far/seed-1/metrics.jsonl");
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 3) {
        assert!(running.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap().success());
    let stopped = running.wait_with_output().unwrap();
    assert_eq!((stopped.status.code(), stopped.status.signal()), (Some(143), None));
    let said = String::from_utf8_lossy(&stopped.stdout).into_owned();
    assert!(said.contains("of it; everything is saved, the same command resumes"), "{said}");
    assert!(!output.join("near/seed-2").exists());
    let again = compare(&configs, &output, &["--epochs", "40", "--set", "eval.every=0"]);
    assert_success(&again);
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert_eq!((said.matches("already there").count(), said.matches("resumed from").count()), (1, 1), "{said}");
}

#[test]
fn what_cannot_be_compared_is_said_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, output) = (configs(dir.path()), dir.path().join("compared"));
    let refused = |configs: &[String], more: &[&str]| {
        let output = compare(configs, &output, more);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let changed = text(Path::new(&configs[1])).replace("guidance_scale = 1.0", "guidance_scale = 3.0");
    std::fs::write(&configs[1], changed).unwrap();
    let e = refused(&configs, &[]);
    assert!(e.starts_with("error: eval.guidance_scale is 1.0 in near, 3.0 in far"), "{e}");
    let e = refused(&[configs[0].clone(), configs[0].clone()], &[]);
    assert!(e.contains("two configs are called 'near'"), "{e}");
    let e = refused(&configs[..1], &["3", "2"]);
    assert!(e.starts_with("error: --seeds: 2 is given twice"), "{e}");
    assert!(!output.exists());
    let e = engine(&["compare", "--config", &configs[0], "--epochs", "1", "--images", "2"]);
    assert!(String::from_utf8_lossy(&e.stderr).contains("cannot be used with"));
}
