//! Commands with `--device vm` do what they do on the CPU.

use std::path::Path;

use engine::io::{TensorFile, image::read_rgb};

use super::{engine, says};
use crate::parity::{fixture, read, relative_error};

const DEVICES: [&str; 2] = ["cpu", "vm"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_sample_is_the_cpu_s_within_a_level_and_embeddings_and_latents_are_within_rounding() {
    let (dir, model) = (tempfile::tempdir().unwrap(), fixture("pipeline/no_t5"));
    let model = text(&model);
    let [cpu, vm] = DEVICES.map(|device| {
        let out = dir.path().join(device);
        let [latents, embeds] = ["latents", "embeds"].map(|name| dir.path().join(format!("{device}.{name}")));
        let common = ["--model", model, "--device", device, "--max-sequence-length", "4", "--prompt", "a red circle"];
        let sample =
            ["sample", "--steps", "2", "--size", "16x32", "--save-latents", text(&latents), "--out", text(&out)];
        says(&[&sample[..], &common].concat());
        says(&[&["encode", "--out", text(&embeds)], &common[..]].concat());
        let image = read_rgb(&out.join("0.png")).unwrap();
        (image, TensorFile::open(&latents).unwrap(), TensorFile::open(&embeds).unwrap())
    });
    assert_eq!((cpu.0.width, cpu.0.height), (16, 32));
    assert!(cpu.0.data.iter().zip(&vm.0.data).all(|(c, v)| c.abs_diff(*v) <= 1));
    for (cpu, vm, bound) in [(&cpu.1, &vm.1, 1e-4), (&cpu.2, &vm.2, 1e-5)] {
        assert!(cpu.names().count() > 0);
        for name in cpu.names() {
            let error = relative_error(&read(vm, name), &read(cpu, name));
            assert!(error <= bound, "{name}: {error:e}");
        }
    }
}

#[test]
fn scores_of_a_model_are_the_cpu_s_within_rounding() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("clip/exact").join(name), dir.path().join(name)).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("vocab.json", r#"{"a": 5, "b": 6, "a</w>": 15, "b</w>": 16, "<|startoftext|>": 60, "<|endoftext|>": 61}"#);
    write("merges.txt", "#version: 0.2\n");
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#,
    );
    write("prompts.txt", "a b\nb\n");
    let images = ["grey.png", "rgb.png"].map(|name| fixture("pictures").join(name));
    let prompts = dir.path().join("prompts.txt");
    let [cpu, vm] = DEVICES.map(|device| {
        let mut args = vec!["score", "--reward", "pickscore", "--model", text(dir.path()), "--device", device];
        args.extend(["--prompts", text(&prompts), "--images", text(&images[0]), text(&images[1])]);
        let output = engine(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let score = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["score"].as_f64().unwrap();
        lines.lines().map(score).collect::<Vec<f64>>()
    });
    assert_eq!((cpu.len(), vm.len()), (2, 2));
    assert!(cpu.iter().zip(&vm).all(|(c, v)| (c - v).abs() <= 1e-5 * c.abs().max(1.0)), "{cpu:?} {vm:?}");
}
