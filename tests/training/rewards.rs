//! Runs whose reward a server gives, which stays away: nothing is lost, and no score is made up.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::device::Device;
use engine::io::TensorFile;
use serde_json::{Value, json};

use super::{assert_success, checkpoint_bytes, train, write_config};
use crate::http::stub::{Reply, Request, Stub, nobody, ok, status};

/// A config with a reward of the server at `url`; `keys` are more of it.
fn config(folder: &Path, url: &str, keys: &str) -> PathBuf {
    with_server(&write_config(folder, ""), url, keys)
}

/// The config at `path` with that reward.
pub fn with_server(path: &Path, url: &str, keys: &str) -> PathBuf {
    let text = std::fs::read_to_string(path).unwrap();
    let reward = format!("rewards = {{ http = {{ url = '{url}', retries = 0, timeout = 20, {keys} }} }}");
    let with = text.replace("rewards = { jpeg_compressibility = 1.0 }", &reward);
    assert_ne!(with, text);
    std::fs::write(path, with).unwrap();
    path.to_path_buf()
}

/// Scores that depend on the pictures alone.
fn scores(request: &Request) -> Vec<f64> {
    let asked = request.json();
    let images = asked["images"].as_array().unwrap();
    images.iter().map(|i| f64::from(crc32fast::hash(i.as_str().unwrap().as_bytes())) / f64::from(u32::MAX)).collect()
}

/// Gives scores, but does as `what` says when asked for those of request `bad`, counted from 1. An evaluation asks twice, for three
/// pictures and for one; an epoch twice, for three of a prompt each.
pub fn failing_at(bad: &'static [usize], what: impl Fn() -> Reply + Send + Sync + 'static) -> Stub {
    let asked = AtomicUsize::new(0);
    Stub::new(move |request| {
        if request.method == "GET" {
            return ok("");
        }
        let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
        if bad.contains(&number) { what() } else { ok(json!({ "scores": scores(request) }).to_string()) }
    })
}

/// The log's lines about epochs.
pub fn epochs(run: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("loss").is_some()).collect()
}

/// The only line on stderr, of a run that ended because a reward stays away.
fn stays_away(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && !stderr.contains("panicked"), "{stderr}");
    errors[0].to_string()
}

/// The first request of epoch 2: the fifth. Each way of failing stops the run after epoch 1, with a line that says which server
/// and what it did; when the server is well again, if at another address, the run goes on as if nothing had been.
#[test]
fn a_run_whose_reward_fails_stops_saved_and_goes_on_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let well = failing_at(&[], || unreachable!());
    let whole = dir.path().join("whole");
    assert_success(&train(&config(dir.path(), &well.url, ""), &whole, &[]));
    type What = fn() -> Reply;
    let ways: [(&str, What, &str); 6] = [
        ("error", || status(500, "CUDA out of memory"), "answered 500 Internal Server Error: 'CUDA out of memory'"),
        ("hang", || Reply::Silence, "no answer in 3 s"),
        ("close", || Reply::Raw(Vec::new()), "the connection was closed before the answer was complete"),
        ("garbage", || ok("\u{0}\u{1b}[2J"), "answered what is not JSON"),
        ("nan", || ok(r#"{"scores": [0.1, NaN, 0.2]}"#), "answered what is not JSON"),
        ("few", || ok(r#"{"scores": [0.1, 0.2]}"#), "answered with 2 scores for 3 pictures"),
    ];
    for (name, what, want) in ways {
        let ill = failing_at(&[5], what);
        let run = dir.path().join(name);
        let output = train(&config(dir.path(), &ill.url, ""), &run, &["--set", "rewards.http.timeout=3"]);
        let error = stays_away(&output);
        assert!(error.starts_with(&format!("error: reward http: {}/score: {want}", ill.url)), "{error}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("stopped after epoch 1; everything is saved, the same command resumes"), "{said}");
        assert_eq!(epochs(&run).len(), 1);
        let output = train(&config(dir.path(), &well.url, ""), &run, &[]);
        assert_success(&output);
        assert!(String::from_utf8_lossy(&output.stdout).contains("resumed from"));
        let tensors = |run: &Path| {
            let files = checkpoint_bytes(run, 3);
            files.into_iter().find(|(name, _)| name == "state.safetensors").unwrap().1
        };
        assert!(tensors(&whole) == tensors(&run), "{name}: the run did not end as one that nothing happened to");
        let rewards = |run: &Path| epochs(run).iter().map(|line| line["reward_mean"].clone()).collect::<Vec<_>>();
        assert_eq!(rewards(&whole), rewards(&run));
    }
}

#[test]
fn a_server_that_recovers_or_is_slow_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let well = failing_at(&[], || unreachable!());
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    assert_success(&train(&config(dir.path(), &well.url, ""), &whole, &["--set", "num_epochs=1"]));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let stub = Stub::new(move |request| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        match (request.method.as_str(), call) {
            // Not up yet when the run begins.
            ("GET", 0) | ("POST", 3 | 4) => status(503, "loading"),
            ("GET", _) => ok(""),
            _ => {
                std::thread::sleep(Duration::from_millis(300));
                ok(json!({ "scores": scores(request) }).to_string())
            }
        }
    });
    let config = config(dir.path(), &stub.url, "");
    let output =
        train(&config, &run, &["--set", "num_epochs=1", "rewards.http.retries=3", "rewards.http.concurrency=2"]);
    assert_success(&output);
    let warned = String::from_utf8_lossy(&output.stderr);
    let of = |path: &str| {
        format!("{}{path}: answered 503 Service Unavailable: 'loading'; trying again, 3 times at most", stub.url)
    };
    assert!(warned.contains(&of("/health")) && warned.contains(&of("/score")), "{warned}");
    assert_eq!(epochs(&whole)[0]["reward_mean"], epochs(&run)[0]["reward_mean"]);
}

/// One picture at a time: an evaluation asks four times, an epoch six. Requests 6 and 23 are of the first and the third epoch.
#[test]
fn a_group_without_scores_is_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let ill = failing_at(&[6, 23], || status(500, "too dark"));
    let (run, well) = (dir.path().join("run"), failing_at(&[], || unreachable!()));
    let one_by_one = ["--set", "rollout.batch_size=1"];
    let output = train(&config(dir.path(), &ill.url, "on_failure = 'skip_group'"), &run, &one_by_one);
    assert_success(&output);
    let lines = epochs(&run);
    let of_line = |key: &str| lines.iter().map(|line| line[key].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of_line("skipped_groups"), of_line("groups")), (vec![1, 0, 1], vec![1, 2, 1]));
    let said = String::from_utf8_lossy(&output.stdout);
    let url = &ill.url;
    let alert =
        format!("1 of 2 groups skipped: reward http: {url}/score: answered 500 Internal Server Error: 'too dark'");
    assert_eq!(said.lines().filter(|line| line.starts_with("epoch ") && line.contains(&alert)).count(), 2, "{said}");
    // The mean is that of the images that were judged with all others of their prompt.
    let asked = ill.asked("/score");
    let first = &asked[4..10];
    let prompt = |request: &Request| request.json()["prompts"][0].clone();
    let judged: Vec<f64> = first.iter().filter(|r| prompt(r) != prompt(&first[1])).flat_map(scores).collect();
    assert_eq!(judged.len(), 3);
    assert!((lines[0]["reward_mean"].as_f64().unwrap() - judged.iter().sum::<f64>() / 3.0).abs() < 1e-12);

    // Had both groups been judged, the epoch would have been another.
    let whole = dir.path().join("whole");
    assert_success(&train(&config(dir.path(), &well.url, ""), &whole, &["--set", "num_epochs=1"]));
    assert_ne!(epochs(&whole)[0]["grad_norm"], lines[0]["grad_norm"]);
}

#[test]
fn an_epoch_without_any_judged_group_stops_the_run_and_an_evaluation_does_not() {
    let dir = tempfile::tempdir().unwrap();
    // The evaluation before the first epoch, then all of epoch 2; what fails together is asked about picture by picture.
    let ill = failing_at(&[1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15], || status(500, ""));
    let run = dir.path().join("run");
    let output = train(&config(dir.path(), &ill.url, "on_failure = 'skip_group'"), &run, &[]);
    let error = stays_away(&output);
    let want = format!("error: no group was judged as a whole: reward http: {}/score: answered 500", ill.url);
    assert!(error.starts_with(&want), "{error}");
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(
        warned.contains(
            "warning: the evaluation after epoch 0 does not count: 4 pictures have no score; reward http: http"
        )
    );
    assert_eq!(epochs(&run).len(), 1);
    assert!(run.join("checkpoints/epoch-000001").is_dir());
}

#[test]
fn a_server_that_is_not_there_ends_a_run_before_it_has_written_anything() {
    let dir = tempfile::tempdir().unwrap();
    let (url, run) = (nobody(), dir.path().join("run"));
    let config = config(dir.path(), &url, "");
    let error = stays_away(&train(&config, &run, &[]));
    assert!(error.contains(&format!("reward http: {url}/health: connection refused")), "{error}");
    assert!(!run.exists());
    // A plan needs no server.
    assert_success(&train(&config, &run, &["--dry-run"]));
}

#[test]
fn mistakes_in_the_keys_of_a_server_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (config(dir.path(), "http://127.0.0.1:1", ""), dir.path().join("run"));
    for (set, want) in [
        ("rewards.http.url=localhost:80", "rewards.http.url: 'localhost:80' is no address, expected such as http://"),
        ("rewards.http.on_failure=skip", "rewards.http.on_failure: found \"skip\", expected one of abort, skip_group"),
        ("rewards.http.protocol=pikle", "expected one of json, flow_factory, pickle; did you mean 'pickle'?"),
        ("rewards.http.retires=1", "did you mean 'retries'?"),
        ("rewards={vlm={url='http://a',model='m',pattern='x'}}", "rewards.vlm.prompt: missing, expected what is asked"),
    ] {
        let output = train(&config, &run, &["--set", set]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(want), "{stderr}");
    }
}

/// Compressible pictures are rewarded four times as much as incompressible ones, but on a scale of a five-hundredth: only where each
/// reward is normalised do they win.
#[test]
fn rewards_of_different_scales_count_by_their_weights_where_each_is_normalised() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_config(dir.path(), "");
    let text = std::fs::read_to_string(&path).unwrap();
    let both = "rewards = { jpeg_compressibility = 1.0, jpeg_incompressibility = 0.25 }";
    std::fs::write(&path, text.replace("rewards = { jpeg_compressibility = 1.0 }", both)).unwrap();
    let log = |name: &str, args: &[&str]| {
        let run = dir.path().join(name);
        assert_success(&train(&path, &run, &[&["--set", "num_epochs=1"], args].concat()));
        epochs(&run).remove(0)
    };
    let (sum, gdpo) = (log("sum", &[]), log("gdpo", &["reward_aggregation=gdpo"]));
    assert_eq!((&sum["rewards"], &sum["reward_mean"]), (&gdpo["rewards"], &gdpo["reward_mean"]));
    assert_ne!(sum["loss"], gdpo["loss"]);
    // The first step goes where the gradient's signs say, and the two rewards alone go opposite ways.
    let step = |name: &str| -> Vec<f32> {
        let file = TensorFile::open(&dir.path().join(name).join("lora/pytorch_lora_weights.safetensors")).unwrap();
        let names = file.names().filter(|name| name.ends_with("lora_B.weight"));
        names.flat_map(|name| file.tensor(name, &Device::Cpu).unwrap().to_host()).collect()
    };
    log("compressible", &["rewards={jpeg_compressibility=1}"]);
    let towards = step("compressible");
    let along = |name: &str| step(name).iter().zip(&towards).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    assert!(along("sum") < 0.0 && along("gdpo") > 0.0, "{} {}", along("sum"), along("gdpo"));
    let output = train(&path, &dir.path().join("x"), &["--set", "reward_aggregation=gpdo"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown value 'gpdo'; did you mean 'gdpo'?"));
}
