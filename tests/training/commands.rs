//! What is done with a trained run: `eval`, `score` and `export`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use super::{assert_success, copy, engine, train, write_config};
use crate::parity::fixture;

/// The `RESULT` lines of `engine eval` on the training prompts with `what`.
fn eval(folder: &Path, what: &[&str]) -> BTreeMap<String, f64> {
    let prompts = folder.join("prompts.txt");
    let mut args = vec!["eval", "--prompts", prompts.to_str().unwrap(), "--rewards", "jpeg_compressibility=2"];
    args.extend(what);
    let out = engine(&args);
    assert_success(&out);
    let text = String::from_utf8(out.stdout).unwrap();
    let results = text.lines().filter_map(|l| l.strip_prefix("RESULT ")?.split_once('='));
    results.map(|(key, value)| (key.to_string(), value.parse().unwrap())).collect()
}

fn export(run: &Path, format: &str, out: &Path) -> Output {
    engine(&["export", "--checkpoint", run.to_str().unwrap(), "--format", format, "--out", out.to_str().unwrap()])
}

#[test]
fn a_checkpoint_its_exported_lora_and_the_merged_model_are_one_policy() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    assert_success(&train(&config, &run, &["--set", "optimizer.lr=0.1"]));
    let (lora, merged) = (dir.path().join("lora"), dir.path().join("merged"));
    assert_success(&export(&run, "diffusers", &lora));
    assert_success(&export(&run, "merged", &merged));

    let base = fixture("pipeline/no_t5");
    let [run, lora, merged, base] = [&run, &lora, &merged, &base].map(|p| p.to_str().unwrap());
    let settings =
        ["--steps", "2", "--guidance", "1", "--seed", "42", "--resolution", "32", "--max-sequence-length", "4"];
    let with = |what: &[&str]| eval(dir.path(), &[what, &settings].concat());
    let trained = with(&["--checkpoint", run]);
    assert_eq!(trained["images"], 4.0);
    // Six digits are printed.
    assert!((trained["reward"] - 2.0 * trained["jpeg_compressibility"]).abs() < 2e-6);
    assert_eq!(trained, with(&["--model", base, "--lora", lora]));
    // Folding the product into the weights rounds differently: a pixel here and there, so a few bytes of a file.
    let away = |results: BTreeMap<String, f64>| (results["reward"] - trained["reward"]).abs();
    let (merged, untrained) = (away(with(&["--model", merged])), away(with(&["--model", base])));
    assert!(merged < 0.2 * untrained, "merged is {merged} away from the policy, the base {untrained}");
    assert_eq!(trained, with(&["--checkpoint", run, "--batch-size", "1", "--threads", "1"]));
}

#[test]
fn a_merged_model_never_overwrites_the_one_it_is_made_from() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy(&fixture("pipeline/no_t5"), &model);
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    assert_success(&train(&config, &run, &["--set", &format!("model={}", model.display()), "--set", "num_epochs=1"]));
    let before = std::fs::read(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    for out in [model.clone(), model.join("vae/new"), dir.path().join("run/../model")] {
        let refused = export(&run, "merged", &out);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains("model's own folder") && error.lines().count() == 1, "{error}");
    }
    assert_eq!(before, std::fs::read(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap());
    assert!(!model.join("vae/new").exists());
}

#[test]
fn score_gives_each_image_the_reward_that_eval_averages() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), "");
    let out = dir.path().join("images");
    let model = fixture("pipeline/no_t5");
    let results = eval(
        dir.path(),
        &["--model", model.to_str().unwrap(), "--steps", "1", "--resolution", "32", "--out", out.to_str().unwrap()],
    );
    let images: Vec<String> = (0..4).map(|i| out.join(format!("{i}.png")).display().to_string()).collect();
    let prompts = dir.path().join("prompts.txt");
    let mut args =
        vec!["score", "--reward", "jpeg_compressibility", "--prompts", prompts.to_str().unwrap(), "--images"];
    args.extend(images.iter().map(String::as_str));
    let scored = engine(&args);
    assert_success(&scored);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(scored.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let mean = lines.iter().map(|l| l["score"].as_f64().unwrap()).sum::<f64>() / 4.0;
    assert!((mean - results["jpeg_compressibility"]).abs() < 1e-6, "{mean} {results:?}");
    let saved: BTreeMap<String, f64> = engine::io::read_json(&out.join("results.json")).unwrap();
    assert!((saved["reward"] - results["reward"]).abs() < 1e-6);
}

#[cfg(unix)]
#[test]
fn a_merged_model_written_over_links_to_its_model_leaves_that_alone_and_replaces_older_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    assert_success(&train(&config, &run, &["--set", "num_epochs=1"]));
    let base = fixture("pipeline/no_t5");
    let out = dir.path().join("merged");
    let mut files = vec![base.join("model_index.json")];
    for folder in std::fs::read_dir(&base).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        files.extend(std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()));
    }
    let before: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    for (i, file) in files.iter().enumerate() {
        let link = out.join(file.strip_prefix(&base).unwrap());
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        // Hard links do not cross file systems.
        if i % 2 == 0 || std::fs::hard_link(file, &link).is_err() {
            std::os::unix::fs::symlink(file, &link).unwrap();
        }
    }
    let index = out.join("transformer/diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    assert_success(&export(&run, "merged", &out));
    assert!(files.iter().zip(before).all(|(file, bytes)| std::fs::read(file).unwrap() == bytes));
    assert!(!index.exists());
    assert!(out.join("transformer/diffusion_pytorch_model.safetensors").symlink_metadata().unwrap().is_file());
}
