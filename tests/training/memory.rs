//! What a run takes is what its plan said, and no more the longer it goes on.

use std::path::Path;

use engine::config::method::Method;
use engine::config::published::Published;
use engine::config::{self, Job};
use engine::device::{Device, with_threads};
use engine::train::plan::MemoryPlan;
use engine::train::setup::check;

use super::{assert_success, train, write_config};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const THREADS: usize = 2;

/// The high-water mark that each epoch of a run reports.
fn marks(run: &Path) -> Vec<f64> {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    lines.filter_map(|l| l["arena_peak_bytes"].as_f64()).collect()
}

#[test]
fn every_config_that_can_run_here_takes_the_memory_that_its_plan_says() {
    let folder = Path::new(ROOT).join("configs/tiny");
    let mut seen = 0;
    for path in std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        // Fewer of what comes one after another: prompts of the epoch and of the evaluation. How many images of a prompt are chosen
        // depends on their rewards, which a plan does not know: there enough prompts for a full batch.
        let method = config::load(&path, &[]).unwrap().algorithm;
        let chooses = matches!(method, Method::Sft | Method::OnlineSft | Method::Dpo | Method::OnlineDpo);
        // One that compares images with no other has one of each prompt.
        let all = chooses || method.follows_gradients();
        let prompts = format!("rollout.num_prompts_per_epoch={}", if all { 32 } else { 8 });
        let changes = ["num_epochs=2".into(), prompts, "eval.num_prompts=8".into()];
        let planned = check(config::load(&path, &changes).unwrap(), Job::Train).unwrap();
        let plan = with_threads(THREADS, || MemoryPlan::of(&planned, &Device::Cpu)).unwrap().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let threads = THREADS.to_string();
        let args = [&["--threads", &threads, "--set"][..], &changes.each_ref().map(String::as_str)].concat();
        assert_success(&train(&path, dir.path(), &args));
        // Of two epochs: that sampling and what goes on beside it are at their highest at once is a matter of chance.
        let (measured, planned) = (marks(dir.path())[1], plan.tensors as f64);
        println!("{}: planned {planned:.3e} bytes, measured {measured:.3e}", path.display());
        assert!((planned / measured - 1.0).abs() < 0.05, "{}: {planned} {measured}", path.display());
        seen += 1;
    }
    let published = Published::all().filter(|one| one.name.starts_with("tiny/"));
    assert_eq!(seen, published.count());
}

#[test]
fn a_hundredth_step_takes_no_more_than_the_second() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let run = dir.path().join("run");
    // With one thread: what several have at hand at the same moment is a matter of chance.
    let args = ["--threads", "1", "--set", "num_epochs=100", "eval.every=50", "checkpoint.every=25"];
    assert_success(&train(&config, &run, &args));
    let marks = marks(&run);
    assert_eq!((marks.len(), marks[99]), (100, marks[1]));
}
