//! Answers to programs: one JSON object on stdout, with the keys that --help lists.

use std::path::Path;

use serde_json::Value;

use super::{engine, refuses, says};
use crate::parity::fixture;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The keys that the help of `subcommand` lists.
fn documented(subcommand: &str) -> Vec<String> {
    let help = says(&[subcommand, "--help"]);
    let list = help.split("Keys of the JSON").nth(1).unwrap_or_else(|| panic!("no keys in: {help}"));
    let lines = list.lines().skip(1).filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next());
    lines.map(str::to_string).collect()
}

/// The paths of everything in `value`, in the way that keys are documented.
fn paths(value: &Value, at: &str, out: &mut Vec<String>) {
    let below = |key: &str| if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, v)| paths(v, &below(key), out)),
        Value::Array(list) if !list.is_empty() => list.iter().for_each(|v| paths(v, &format!("{at}[]"), out)),
        _ => out.push(at.to_string()),
    }
}

/// Whether `whole` is `part` or something in it.
fn is_in(whole: &str, part: &str) -> bool {
    whole.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Fails unless every key of `value` is documented for `subcommand`, and every documented one is there but those of `absent`.
fn check_keys(subcommand: &str, value: &Value, absent: &[&str]) {
    let (documented, mut found) = (documented(subcommand), Vec::new());
    paths(value, "", &mut found);
    for path in &found {
        let is_known = |key: &String| is_in(path, key.trim_end_matches(".*")) || is_in(key, path);
        assert!(documented.iter().any(is_known), "{subcommand}: {path} is not among {documented:?}");
    }
    for key in documented.iter().map(|key| key.trim_end_matches(".*")) {
        // Where there is nothing, null or an empty list, there are no keys in it either.
        let is_there = found.iter().any(|path| is_in(path, key) || is_in(key, path));
        assert!(is_there || absent.contains(&key), "{subcommand}: {key} is not among {found:?}");
    }
}

/// What `engine` answers with --json, and what it says on stderr.
fn answer(args: &[&str]) -> (Value, String) {
    let output = engine(&[args, &["--json"]].concat());
    let [out, err] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
    assert!(output.status.success(), "{err}");
    (serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}")), err)
}

fn config(name: &str) -> String {
    format!("{ROOT}/configs/{name}.toml")
}

#[test]
fn a_plan_is_answered_with_what_its_lines_say() {
    let (got, err) = answer(&["train", "--config", &config("ram_pickscore"), "--dry-run", "--device", "plan:h100"]);
    check_keys("train", &got, &["stages"]);
    assert!(err.contains("predicted time per epoch") && err.contains("memory (planned"), "{err}");
    assert_eq!(got["images_per_epoch"], 1152);
    let seconds = got["prediction"]["seconds_per_epoch"].as_f64().unwrap();
    assert!(err.contains(&format!("{seconds:.1} s")), "{seconds} {err}");
    let sum: f64 = got["prediction"]["phase_seconds"].as_object().unwrap().values().map(|s| s.as_f64().unwrap()).sum();
    assert!((sum / seconds - 1.0).abs() < 1e-9, "{sum} {seconds}");
    let shares: f64 = got["prediction"]["shares"].as_object().unwrap().values().map(|s| s.as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    let memory = |key: &str| got["memory"][key].as_u64().unwrap();
    assert!(memory("total") > memory("weights") && memory("total") < memory("available"), "{got}");
}

#[test]
fn a_dry_run_here_is_answered_without_a_prediction() {
    let model = format!("model={}", fixture("pipeline/no_t5").display());
    let args = ["train", "--config", &config("tiny/ram_jpeg"), "--dry-run", "--device", "cpu", "--set", &model];
    let (got, err) = answer(&[&args[..], &["rollout.resolution=32"]].concat());
    check_keys("train", &got, &["stages"]);
    assert!(got["prediction"].is_null() && got["resolution"] == 32, "{got}");
    assert!(err.contains("images per epoch"), "{err}");
    refuses(&["train", "--config", "ram_pickscore", "--json"], &["--dry-run"]);
}

#[test]
fn files_and_folders_are_answered_with_their_tensors() {
    let (got, err) = answer(&["inspect", fixture("pipeline/no_t5").to_str().unwrap()]);
    let tensors = "parts[].tensors[]";
    let of_tensors = ["name", "dtype", "shape", "bytes"].map(|key| format!("{tensors}.{key}"));
    let absent: Vec<&str> = of_tensors.iter().map(String::as_str).chain(["parts[].metadata"]).collect();
    check_keys("inspect", &got, &absent);
    assert_eq!(err, "");
    let file = fixture("pipeline/no_t5/transformer/diffusion_pytorch_model.safetensors");
    let (got, _) = answer(&["inspect", file.to_str().unwrap()]);
    check_keys("inspect", &got, &["class", "parts[].class"]);
    assert!(got["parts"][0]["tensors"][0]["shape"].is_array(), "{got}");
}

#[test]
fn the_machine_is_answered_in_numbers() {
    let (got, err) = answer(&["doctor", "--threads", "1", "--device", "cpu"]);
    check_keys("doctor", &got, &["device.facts", "device.free", "cuda.devices[].name", "cuda.devices[].unusable"]);
    assert_eq!(err, "");
    assert!(got["gflops"]["f32"].as_f64().unwrap() > 0.0 && got["gflops"]["threads"] == 1, "{got}");
    assert!(got["memory"]["total"].as_u64().unwrap() > 1 << 20 && got["device"]["kind"] == "cpu", "{got}");
}

#[test]
fn published_configs_are_answered_as_a_list() {
    let (got, _) = answer(&["configs"]);
    check_keys("configs", &got, &[]);
    let list = got["configs"].as_array().unwrap();
    let ocr = list.iter().find(|c| c["name"] == "ram_ocr").unwrap();
    assert!(ocr["algorithm"] == "ram" && ocr["rewards"][0]["available"] == true, "{ocr}");
}

#[test]
fn samples_scores_and_evaluations_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("pipeline/no_t5"), folder.path().join("images"));
    let [model, out] = [&model, &out].map(|p: &std::path::PathBuf| p.to_str().unwrap());
    let sample = ["sample", "--model", model, "--out", out, "--steps", "1", "--size", "32x32", "--prompt", "a", "b"];
    let (got, err) = answer(&[&sample[..], &["--max-sequence-length", "4"]].concat());
    check_keys("sample", &got, &[]);
    assert!(got["prompts"] == serde_json::json!(["a", "b"]) && got["latents"].is_null(), "{got}");
    assert!(!err.contains("wrote"), "{err}");
    let image = got["images"][1].as_str().unwrap();
    assert!(Path::new(image).is_file(), "{image}");

    let prompts = format!("{ROOT}/configs/tiny/prompts_test.jsonl");
    let line =
        says(&["score", "--reward", "jpeg_compressibility", "--images", image, "--prompts", &first(folder.path())]);
    check_keys("score", &serde_json::from_str(&line).unwrap(), &[]);

    let eval =
        ["eval", "--model", model, "--prompts", &prompts, "--rewards", "jpeg_compressibility", "--guidance", "1"];
    let few = ["--num-prompts", "2", "--steps", "1", "--resolution", "32", "--out", out];
    let (got, _) = answer(&[&eval[..], &few].concat());
    check_keys("eval", &got, &[]);
    let file: Value = serde_json::from_slice(&std::fs::read(Path::new(out).join("results.json")).unwrap()).unwrap();
    assert!(got["results"] == file && got["images"] == 2 && file["jpeg_compressibility"].is_number(), "{got} {file}");
}

/// A file with one prompt.
fn first(folder: &Path) -> String {
    let path = folder.join("prompt.txt");
    std::fs::write(&path, "a\n").unwrap();
    path.to_str().unwrap().to_string()
}
