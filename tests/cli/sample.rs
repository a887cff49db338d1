//! What `sample` and `encode` refuse, and that they leave nothing behind then.

use std::ffi::OsString;
use std::path::Path;

use safetensors::Dtype;

use super::{Stored, refuses, says, serialized};
use crate::parity::fixture;

/// Arguments for one cheap image from the pipeline fixture into `out`.
fn arguments(command: &str, model: &Path, out: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args: Vec<OsString> = [command, "--prompt", "a red circle", "--model"].map(Into::into).to_vec();
    args.extend([model.into(), "--out".into(), out.into()]);
    if command == "sample" {
        args.extend(["--steps", "1", "--size", "16x16"].map(Into::into));
    }
    args.extend(more.iter().map(Into::into));
    args
}

/// `sample` with `more` must refuse with all of `words` and write nothing at all.
fn refuses_sample(more: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    refuses(&arguments("sample", &fixture("pipeline/no_t5"), &out, more), words);
    assert!(!out.exists() || out.read_dir().unwrap().next().is_none(), "something was written");
}

/// The same arguments with `flag`'s value replaced.
fn replaced(args: Vec<OsString>, flag: &str, value: &str) -> Vec<OsString> {
    let at = args.iter().position(|a| a == flag).unwrap() + 1;
    args.into_iter().enumerate().map(|(i, a)| if i == at { value.into() } else { a }).collect()
}

#[test]
fn an_image_is_written_where_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    says(&arguments("sample", &fixture("pipeline/no_t5"), folder.path(), &["--threads", "1"]));
    assert!(std::fs::read(folder.path().join("0.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn an_impossible_size_names_the_nearest_that_is_possible() {
    let out = tempfile::tempdir().unwrap();
    let args = || arguments("sample", &fixture("pipeline/no_t5"), out.path(), &[]);
    for (size, words) in [
        ("17x16", ["width is 17, expected", "nearest is 16"]),
        ("16x0", ["height is 0, expected", "nearest is 16"]),
        ("4096x16", ["width is 4096, expected", "nearest is 128"]),
        ("18446744073709551615x16", ["width is 18446744073709551615, expected", "nearest is 128"]),
        ("18446744073709551616x16", ["--size", "WIDTHxHEIGHT"]),
        ("-16x16", ["--size", "WIDTHxHEIGHT"]),
        ("16", ["--size", "WIDTHxHEIGHT"]),
    ] {
        let mut args = replaced(args(), "--size", size);
        // A value that begins with a dash is taken for a flag unless it is glued to its own.
        let at = args.iter().position(|a| a == "--size").unwrap();
        args.splice(at..at + 2, [format!("--size={size}").into()]);
        refuses(&args, &words);
    }
    assert!(out.path().read_dir().unwrap().next().is_none());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    refuses_sample(&["--guidance", "NaN"], &["--guidance is NaN"]);
    refuses_sample(&["--seed=-1"], &["--seed", "-1"]);
    refuses_sample(&["--max-sequence-length", "0"], &["max"]);
    refuses_sample(&["--max-sequence-length", "513"], &["512"]);
    refuses_sample(&["--guidence", "2"], &["--guidence", "'--guidance'"]);
    let out = tempfile::tempdir().unwrap();
    refuses(
        &replaced(arguments("sample", &fixture("pipeline/no_t5"), out.path(), &[]), "--steps", "0"),
        &["--steps is 0"],
    );
}

#[test]
fn noise_that_does_not_fit_names_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noise.safetensors");
    let text = path.to_str().unwrap();
    let write = |name: &str, dtype: Dtype, shape: &[usize]| {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        std::fs::write(&path, serialized(&[Stored { name: name.into(), dtype, shape: shape.into(), bytes }])).unwrap();
    };
    for shape in [&[2, 16, 2, 2][..], &[1, 4, 2, 2], &[1, 16, 3, 2], &[1, 16, 2]] {
        write("noise", Dtype::F32, shape);
        refuses_sample(&["--noise", text], &["noise.safetensors: noise has shape", &format!("{shape:?}"), "expected"]);
    }
    write("noice", Dtype::F32, &[1, 16, 2, 2]);
    refuses_sample(&["--noise", text], &["no tensor 'noise'", "'noice'"]);
    write("noise", Dtype::I64, &[1, 16, 2, 2]);
    refuses_sample(&["--noise", text], &["tensor 'noise' is I64"]);
    refuses_sample(&["--noise", "/no/such/noise.safetensors"], &["/no/such/noise.safetensors", "No such file"]);
}

#[test]
fn a_folder_that_is_no_sd3_pipeline_says_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    let args = || arguments("sample", &model, &out, &[]);
    refuses(&args(), &["no such folder", "model"]);
    std::fs::create_dir(&model).unwrap();
    refuses(&args(), &["model_index.json"]);
    let index = std::fs::read_to_string(fixture("pipeline/no_t5/model_index.json")).unwrap();
    let write = |text: &str| std::fs::write(model.join("model_index.json"), text).unwrap();
    write(&index.replace("StableDiffusion3Pipeline", "FluxPipeline"));
    refuses(&args(), &["FluxPipeline", "StableDiffusion3Pipeline"]);
    write(&index);
    refuses(&args(), &["No such file", "scheduler"]);
    write("[]");
    refuses(&args(), &["model_index.json"]);
    assert!(!out.exists());
}

#[test]
fn output_that_cannot_be_written_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let model = fixture("pipeline/no_t5");
    for out in [&file, &file.join("below")] {
        refuses(&arguments("sample", &model, out, &[]), &["output folder", "file"]);
    }
    let latents = file.join("latents.safetensors");
    refuses_sample(&["--save-latents", latents.to_str().unwrap()], &["output folder", "file"]);
    refuses_sample(&["--save-latents", folder.path().to_str().unwrap()], &["it is a folder, expected a file"]);
    refuses(&arguments("encode", &model, &file.join("e.safetensors"), &[]), &["output folder", "file"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
}

#[test]
fn a_lora_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let bytes = vec![0; 4 * 32 * 4];
    let name = "transformer.transformer_blocks.0.attn.to_qq.lora_A.weight".to_string();
    std::fs::write(&path, serialized(&[Stored { name, dtype: Dtype::F32, shape: vec![4, 32], bytes }])).unwrap();
    refuses_sample(&["--lora", path.to_str().unwrap()], &["lora.safetensors", "to_qq"]);
    refuses_sample(&["--lora", "/no/such/lora"], &["/no/such/lora"]);
}
