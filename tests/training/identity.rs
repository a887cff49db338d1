//! What a run is: what it learns from and what it has learnt, not where either lies.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::{assert_success, checkpoint_bytes, engine, train, train_command, write_config};
use crate::parity::fixture;

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// The tests' model, copied.
fn model_in(folder: &Path) -> PathBuf {
    copy_folder(&fixture("pipeline/no_t5"), folder);
    folder.to_path_buf()
}

fn set(key: &str, path: &Path) -> [String; 2] {
    ["--set".into(), format!("{key}={}", path.display())]
}

fn trained(config: &Path, run: &Path, args: &[&[String]]) -> std::process::Output {
    let args = args.concat();
    train(config, run, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn epochs(n: u32) -> [String; 2] {
    ["--set".into(), format!("num_epochs={n}")]
}

/// The epochs in the log, in its order.
fn logged(run: &Path) -> Vec<u64> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let epochs = log.lines().filter(|l| l.contains("\"loss\"")).map(|l| {
        let line: serde_json::Value = serde_json::from_str(l).unwrap();
        line["epoch"].as_u64().unwrap()
    });
    epochs.collect()
}

/// A run that goes on until something happens to it, once it has printed a line that begins with `epoch` and holds `mark`.
fn running(config: &Path, run: &Path, args: &[&str], mark: &str) -> Child {
    let mut child = train_command(config, run, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|l| l.starts_with("epoch ") && l.contains(mark)), "no {mark}");
    // Whoever reads no more closes the pipe, which is none of the run's business.
    child
}

#[test]
fn the_same_inputs_at_another_path_are_the_same_run_and_other_content_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (config, whole, run) = (write_config(dir.path(), ""), dir.path().join("whole"), dir.path().join("run"));
    let model = model_in(&dir.path().join("model"));
    assert_success(&trained(&config, &whole, &[&epochs(2), &set("model", &model)]));
    assert_success(&trained(&config, &run, &[&epochs(1), &set("model", &model)]));

    let (elsewhere, prompts) = (model_in(&dir.path().join("elsewhere")), dir.path().join("moved.txt"));
    std::fs::copy(dir.path().join("prompts.txt"), &prompts).unwrap();
    std::fs::remove_dir_all(&model).unwrap();
    let moved = [set("model", &elsewhere), set("prompts.train", &prompts), set("prompts.eval", &prompts)].concat();
    assert_success(&trained(&config, &run, &[&epochs(2), &moved]));
    let tensors = |run: &Path| checkpoint_bytes(run, 2).into_iter().find(|(name, _)| name == "state.safetensors");
    assert!(tensors(&whole) == tensors(&run));

    // What was learnt can be had without the model.
    let out = dir.path().join("lora");
    let export = ["export", "--checkpoint", whole.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert_success(&engine(&export));
    let [a, b] =
        [&out, &whole.join("lora")].map(|f| std::fs::read(f.join("pytorch_lora_weights.safetensors")).unwrap());
    assert!(a == b);

    let refuses = |key: &str| {
        let output = trained(&config, &run, &[&epochs(3), &moved]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&format!("was trained with another {key}")), "{error}");
    };
    let weights = elsewhere.join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    // A sign: still a finite number.
    bytes[last] ^= 0x80;
    std::fs::write(&weights, &bytes).unwrap();
    refuses("model");
    bytes[last] ^= 0x80;
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::write(&prompts, "a red circle\ntwo blue squares\na green field\nthe moon\n").unwrap();
    refuses("prompts.eval");
}

#[test]
fn resuming_an_older_checkpoint_takes_the_run_there_whatever_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    let keep = ["--set", "checkpoint.keep=9"];
    assert_success(&train(&config, &run, &keep));
    assert_eq!(logged(&run), [1, 2, 3]);
    let older = run.join("checkpoints/epoch-000001");
    let args = ["--resume", older.to_str().unwrap(), "--set", "num_epochs=100000", "checkpoint.every=0"];
    let mut child = running(&config, &run, &args, " 2/");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_success(&train(&config, &run, &keep));
    assert_eq!(logged(&run), [1, 2, 3]);
    // From the checkpoint of another run too.
    let other = dir.path().join("other");
    let from = ["--resume", older.to_str().unwrap(), "--set", "num_epochs=2", "checkpoint.keep=9"];
    assert_success(&train(&config, &other, &from));
    assert_eq!(checkpoint_bytes(&other, 1)[1], checkpoint_bytes(&run, 1)[1]);
}

#[cfg(unix)]
#[test]
fn an_output_folder_that_is_removed_ends_the_run_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    let child = running(&config, &run, &["--set", "num_epochs=100000", "checkpoint.every=0", "eval.every=0"], " 1/");
    std::fs::remove_dir_all(&run).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(&format!("the output folder {} was removed", run.display())), "{error}");
    assert!(!run.exists());
}

#[cfg(unix)]
#[test]
fn weights_that_shrink_under_a_run_are_named_and_what_it_has_learnt_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (write_config(dir.path(), ""), dir.path().join("run"));
    let model = model_in(&dir.path().join("model"));
    let key = format!("model={}", model.display());
    let child =
        running(&config, &run, &["--set", "num_epochs=100000", "checkpoint.every=0", "eval.every=0", &key], " 2/");
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(20_000).unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("transformer/diffusion_pytorch_model.safetensors was changed"), "{error}");
    let saved = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    assert_eq!(format!("epoch-{:06}", logged(&run).last().unwrap()), saved.trim());
}
