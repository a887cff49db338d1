//! Models that are not a folder of diffusers: what is said when a part is missing, and runs that learn from them.

use std::path::Path;

use super::{check_line, engine, refuses, says};
use crate::parity::single_file::{write_parts, write_whole};
use crate::training::{assert_success, train, write_config};

fn tiny() -> String {
    format!("{}/models/tiny-sd3", env!("CARGO_MANIFEST_DIR"))
}

fn sample<'a>(model: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["sample", "--model", model, "--prompt", "a red circle", "--size", "16x16", "--steps", "1"];
    args.extend(["--max-sequence-length", "4", "--out", out]);
    args.extend(more);
    args
}

#[test]
fn a_part_that_is_missing_is_named_with_the_flag_that_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let transformer = write_parts(dir.path());
    let (model, out) = (transformer.to_str().unwrap(), dir.path().join("out"));
    let out = out.to_str().unwrap();
    refuses(
        &sample(model, out, &[]),
        &["transformer.gguf: a file has no tokenizers", "--tokenizers", "parts.tokenizers"],
    );
    let tokenizers = ["--tokenizers", &tiny()];
    refuses(
        &sample(model, out, &["--tokenizers", "nowhere"]),
        &["tokenizers (--tokenizers)", "no such folder: nowhere"],
    );

    // Found beside it, in a folder that ComfyUI has, and given.
    says(&sample(model, out, &tokenizers));
    std::fs::create_dir(dir.path().join("text_encoders")).unwrap();
    let (beside, below) = (dir.path().join("clip_l.safetensors"), dir.path().join("text_encoders/clip_l.safetensors"));
    std::fs::rename(&beside, &below).unwrap();
    says(&sample(model, out, &tokenizers));
    let elsewhere = dir.path().join("mine");
    std::fs::rename(&below, &elsewhere).unwrap();
    let words = ["has no text_encoder, and there is no clip_l.safetensors beside it", "--clip-l FILE", "parts.clip_l"];
    refuses(&sample(model, out, &tokenizers), &words);
    let given = [&tokenizers[..], &["--clip-l", elsewhere.to_str().unwrap()]].concat();
    assert!(says(&sample(model, out, &given)).contains("text_encoder from "));

    // Two that may be meant; none at all is none.
    let t5 = dir.path().join("t5xxl-Q4_K_M.gguf");
    std::fs::copy(&t5, dir.path().join("t5xxl_fp16.gguf")).unwrap();
    let words = ["t5xxl-Q4_K_M.gguf and ", "t5xxl_fp16.gguf; --t5xxl (or parts.t5xxl) says which"];
    refuses(&sample(model, out, &given), &words);
    std::fs::remove_file(&t5).unwrap();
    std::fs::remove_file(dir.path().join("t5xxl_fp16.gguf")).unwrap();
    assert!(says(&sample(model, out, &given)).contains("no T5"));
}

#[test]
fn a_file_that_is_another_part_or_no_part_or_damaged_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let transformer = write_parts(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let out = at("out");
    refuses(&sample("nowhere.gguf", &out, &[]), &["model: no such folder or file: nowhere.gguf"]);
    refuses(&sample(&at("sd3_vae.safetensors"), &out, &[]), &["sd3_vae.safetensors: no transformer of SD3"]);
    let words = ["clip_l (--clip-l)", "has no tensors of a text_encoder; it looks like the vae"];
    refuses(&sample(&tiny(), &out, &["--clip-l", &at("sd3_vae.safetensors")]), &words);
    refuses(&sample(&tiny(), &out, &["--vae", &at("nowhere")]), &["vae (--vae)", "nowhere"]);
    let words = ["text_encoder_3 is 128 wide, the transformer's joint_attention_dim is 192"];
    let stderr = engine(&sample(&tiny(), &out, &["--transformer", &at("transformer.gguf")])).stderr;
    check_line(String::from_utf8(stderr).unwrap().trim(), &words);

    let whole = std::fs::read(&transformer).unwrap();
    for (length, words) in [(3000, "the header ends with the file"), (300_000, "does not lie in the file")] {
        std::fs::write(at("cut.gguf"), &whole[..length]).unwrap();
        refuses(&["inspect", &at("cut.gguf")], &["cut.gguf: ", words]);
    }
    let mut other = whole.clone();
    other[4] = 1;
    std::fs::write(at("old.gguf"), &other).unwrap();
    refuses(&["inspect", &at("old.gguf")], &["old.gguf: GGUF version 1, expected 2 or 3"]);
    // The type of the first tensor, which follows its name, axes and sizes.
    let name = b"pos_embed";
    let first = whole.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 3 * 8;
    let mut other = whole;
    other[first] = 17;
    std::fs::write(at("new.gguf"), &other).unwrap();
    refuses(&["inspect", &at("new.gguf")], &["tensor 'pos_embed' is of type IQ2_XS, expected F32"]);
}

#[test]
fn a_variant_is_taken_where_it_is_and_a_misspelt_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    crate::training::identity::copy_folder(Path::new(&tiny()), &model);
    let (model, out) = (model.to_str().unwrap(), dir.path().join("out"));
    let out = out.to_str().unwrap();
    refuses(&sample(model, out, &["--variant", "fp16"]), &["no weights of variant 'fp16'; it has no variants"]);
    let vae = |name: &str| format!("{model}/vae/diffusion_pytorch_model{name}.safetensors");
    std::fs::copy(vae(""), vae(".fp16")).unwrap();
    says(&sample(model, out, &["--variant", "fp16"]));
    refuses(&sample(model, out, &["--variant", "fp61"]), &["'fp61'; it has fp16; did you mean 'fp16'?"]);
    // It is read: damaged, it is missed.
    std::fs::write(vae(".fp16"), "nonsense").unwrap();
    refuses(&sample(model, out, &["--variant", "fp16"]), &["diffusion_pytorch_model.fp16.safetensors"]);
    says(&sample(model, out, &[]));
}

#[test]
fn a_run_learns_from_files_wherever_they_lie_and_refuses_others() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let checkpoint = write_whole(&here);
    let config = write_config(dir.path(), "");
    let output = dir.path().join("run");
    let run = |model: &Path, epochs: u32| {
        let sets = [
            format!("model={}", model.display()),
            format!("parts.tokenizers={}", tiny()),
            "rollout.resolution=16".to_string(),
            format!("num_epochs={epochs}"),
        ];
        let args: Vec<&str> = std::iter::once("--set").chain(sets.iter().map(String::as_str)).collect();
        train(&config, &output, &args)
    };
    assert_success(&run(&checkpoint, 1));
    let there = dir.path().join("there.safetensors");
    std::fs::rename(&checkpoint, &there).unwrap();
    let resumed = run(&there, 2);
    assert_success(&resumed);
    assert!(String::from_utf8_lossy(&resumed.stdout).contains("resum"), "{resumed:?}");

    let merged = dir.path().join("merged");
    let args =
        ["export", "--checkpoint", output.to_str().unwrap(), "--format", "merged", "--out", merged.to_str().unwrap()];
    refuses(&args, &["there.safetensors: a merged model is a copy of a folder", "--format diffusers"]);
    assert!(says(&["inspect", output.to_str().unwrap()]).contains("epoch-000002"));

    // A part that is given is used, also where the run says where the others are.
    let prompts = dir.path().join("prompts.txt");
    let evaluate = ["eval", "--checkpoint", output.to_str().unwrap(), "--prompts", prompts.to_str().unwrap()];
    let given = ["--rewards", "jpeg_compressibility", "--clip-l", "nowhere"];
    refuses(&[&evaluate[..], &given].concat(), &["clip_l (--clip-l)", "nowhere"]);

    // One weight is another.
    let mut bytes = std::fs::read(&there).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&there, bytes).unwrap();
    let refused = run(&there, 3);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && error.contains("model"), "{error}");
}
