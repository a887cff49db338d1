//! What `sample` and `encode` write when all is well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::device::Device;
use engine::device::philox::Purpose;
use engine::io::{TensorFile, read_json, safetensors::save};
use engine::ops::noise;
use engine::rollout::image_keys;
use safetensors::Dtype;

use super::{engine, refuses, says, serialized, stored};
use crate::parity::{fixture, read, relative_error};

const STEM: &str = "diffusion_pytorch_model.safetensors";

fn model() -> PathBuf {
    fixture("pipeline/no_t5")
}

/// Runs `engine sample` with `prompts` and `more` into `out`; gives the images.
fn sample(model: &Path, out: &Path, prompts: &[&str], more: &[&str]) -> Vec<Vec<u8>> {
    let mut args = vec!["sample", "--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
    args.extend(["--steps", "2", "--size", "16x32", "--max-sequence-length", "4", "--prompt"]);
    args.extend(prompts);
    args.extend(more);
    says(&args);
    (0..prompts.len()).map(|i| std::fs::read(out.join(format!("{i}.png"))).unwrap()).collect()
}

/// The reference pipeline's run `negative`, through the program: prompts, a negative prompt and given noise in,
/// latents and embeddings out.
#[test]
fn given_noise_becomes_the_latents_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let (noise, latents) = (folder.path().join("noise.safetensors"), folder.path().join("latents.safetensors"));
    let io = TensorFile::open(&model().join("io.safetensors")).unwrap();
    let settings: serde_json::Value = read_json(&model().join("io.json")).unwrap();
    let prompts: Vec<&str> = settings["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    save(&noise, [("noise".to_string(), read(&io, "noise"))], &BTreeMap::new()).unwrap();

    let (model, text) = (model(), |p: &Path| p.to_str().unwrap().to_string());
    let mut args = vec!["sample".to_string(), "--model".into(), text(&model), "--out".into(), text(folder.path())];
    args.extend(["--steps", "10", "--guidance", "4.5", "--max-sequence-length", "5"].map(String::from));
    args.extend(["--negative-prompt", "blurry, grey", "--noise"].map(String::from));
    args.extend([text(&noise), "--save-latents".into(), text(&latents), "--prompt".into()]);
    args.extend(prompts.iter().map(|p| p.to_string()));
    assert!(engine(&args).status.success());
    let got = read(&TensorFile::open(&latents).unwrap(), "latents");
    let want = read(&io, "negative.latents");
    assert_eq!(got.shape(), want.shape());
    assert!(relative_error(&got, &want) <= 1e-4);

    let embeds = folder.path().join("embeds.safetensors");
    let mut args = vec!["encode".to_string(), "--model".into(), text(&model), "--out".into(), text(&embeds)];
    args.extend(["--max-sequence-length", "5", "--prompt"].map(String::from));
    args.extend(prompts.iter().map(|p| p.to_string()));
    let output = engine(&args);
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.starts_with("warning:") && warning.contains("are not seen"), "{warning}");
    let embeds = TensorFile::open(&embeds).unwrap();
    for name in ["prompt_embeds", "pooled_prompt_embeds"] {
        let want = read(&io, &format!("negative.{name}"));
        assert!(relative_error(&read(&embeds, name), &want) <= 1e-5, "{name}");
    }
}

#[test]
fn image_i_of_a_seed_is_the_same_in_any_batch_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let run = |n: usize, more: &[&str]| sample(&model(), folder.path(), &prompts[..n], more);
    let nine = run(9, &["--threads", "2"]);
    assert_eq!(nine[..2], run(2, &["--threads", "1"]));
    assert_eq!(nine, run(9, &["--threads", "3"]));
    assert_ne!(nine[..2], run(2, &["--seed", "1"]));
    // The seed's own noise, given as a file.
    let noise = folder.path().join("noise.safetensors");
    let seeds_own = noise::normal(&Device::Cpu, &image_keys(0, Purpose::InitialLatent, 0, 2), &[2, 16, 4, 2]);
    save(&noise, [("noise".to_string(), seeds_own)], &BTreeMap::new()).unwrap();
    assert_eq!(nine[..2], run(2, &["--noise", noise.to_str().unwrap()]));
}

#[test]
fn a_negative_prompt_matters_exactly_under_guidance() {
    let folder = tempfile::tempdir().unwrap();
    let run = |guidance: &str, more: &[&str]| {
        sample(&model(), folder.path(), &["a red circle"], &[&["--guidance", guidance], more].concat())
    };
    let negative = ["--negative-prompt", "blurry"];
    assert_ne!(run("5", &[]), run("5", &negative));
    assert_eq!(run("1", &[]), run("1", &negative));
}

/// A copy of the model with the transformer's weights written by `write(folder, tensors)`.
fn with_transformer(to: &Path, write: impl FnOnce(&Path, Vec<super::Stored>)) {
    for entry in ["", "scheduler", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer"] {
        std::fs::create_dir_all(to.join(entry)).unwrap();
        for file in std::fs::read_dir(model().join(entry)).unwrap().map(|f| f.unwrap().path()).filter(|f| f.is_file()) {
            std::fs::copy(&file, to.join(entry).join(file.file_name().unwrap())).unwrap();
        }
    }
    let path = to.join("transformer").join(STEM);
    let tensors = stored(&std::fs::read(&path).unwrap());
    std::fs::remove_file(path).unwrap();
    write(&to.join("transformer"), tensors);
}

#[test]
fn a_model_in_shards_gives_the_images_of_the_same_model_in_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let sharded = folder.path().join("model");
    with_transformer(&sharded, |to, tensors| {
        let (first, second) = tensors.split_at(tensors.len() / 3);
        let mut map = BTreeMap::new();
        for (i, part) in [first, second].into_iter().enumerate() {
            let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i + 1);
            map.extend(part.iter().map(|t| (t.name.clone(), name.clone())));
            std::fs::write(to.join(name), serialized(part)).unwrap();
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        std::fs::write(to.join(format!("{STEM}.index.json")), index.to_string()).unwrap();
    });
    let run = |model: &Path| sample(model, folder.path(), &["a red circle"], &[]);
    assert_eq!(run(&sharded), run(&model()));
}

#[test]
fn damaged_weights_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    type Damage = fn(&mut Vec<super::Stored>);
    let poison: Damage = |t| t[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let cases: [(Damage, &str); 4] = [
        (poison, "holds NaN at element 0"),
        (|t| t[0].dtype = Dtype::I32, "is I32, expected F32, F16 or BF16"),
        (|t| t[0].shape.push(1), "the config asks for"),
        (|t| drop(t.remove(0)), "missing tensor"),
    ];
    for (i, (change, words)) in cases.into_iter().enumerate() {
        let model = dir.path().join(i.to_string());
        with_transformer(&model, |to, mut tensors| {
            change(&mut tensors);
            std::fs::write(to.join(STEM), serialized(&tensors)).unwrap();
        });
        let [model, out] = [&model, &out].map(|p| p.to_str().unwrap());
        refuses(&["sample", "--model", model, "--prompt", "a", "--out", out], &[words, "transformer"]);
    }
    assert!(!out.exists());
}
