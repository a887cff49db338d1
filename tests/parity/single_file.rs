use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::device::{Blocks, DType, Device, Tensor};
use engine::io::{TensorFile, read_json};
use engine::models::load_network;
use engine::models::lora::{Adapters, Rows};
use engine::models::network::Condition;
use engine::models::source::{Model, Parts, Source};
use engine::models::text::TextEncoders;
use engine::rollout::Pipeline;
use engine::rollout::sample::{self, Policy};
use engine::rollout::sampler::{Euler, Sampler};
use half::{bf16, f16};

use super::{devices, fixture, hashed, read, relative_error};
use crate::gguf;

/// A tensor whose numbers follow from its name (`tools/oracle/single_file.py`).
#[derive(serde::Deserialize)]
struct Listed {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    mean: f32,
    gain: f32,
}

/// Files by name, each with its tensors.
type Files = BTreeMap<String, Vec<Listed>>;

#[derive(serde::Deserialize)]
struct Cases {
    whole: Files,
    parts: Files,
    prompts: Vec<String>,
    steps: usize,
    guidance: f32,
    sequence: usize,
}

fn blocks(dtype: &str) -> Option<Blocks> {
    Blocks::ALL.into_iter().find(|b| b.name() == dtype)
}

impl Listed {
    /// The bytes of the tensor in its type.
    fn bytes(&self) -> Vec<u8> {
        let elements: usize = self.shape.iter().product();
        let byte = |i: usize| (hashed(&self.name, i) >> 24) as u8;
        let value = |i: usize| {
            let unit = (hashed(&self.name, i) >> 8) as f32 * 2f32.powi(-23) - 1.0;
            self.mean + self.gain * unit
        };
        match self.dtype.as_str() {
            "F32" => (0..elements).flat_map(|i| value(i).to_le_bytes()).collect(),
            "F16" => (0..elements).flat_map(|i| f16::from_f32(value(i)).to_le_bytes()).collect(),
            "BF16" => (0..elements).flat_map(|i| bf16::from_f32(value(i)).to_le_bytes()).collect(),
            "F8_E4M3" => (0..elements).map(|i| byte(i) & 0x9F).collect(),
            other => {
                let blocks = blocks(other).unwrap();
                let mut bytes: Vec<u8> = (0..elements / blocks.elements() * blocks.bytes()).map(byte).collect();
                let at = match blocks {
                    Blocks::Q2K => 80,
                    Blocks::Q3K => 108,
                    Blocks::Q6K => 208,
                    _ => 0,
                };
                let minimum = match blocks {
                    Blocks::Q4_1 => Some(-7.5),
                    Blocks::Q5_1 => Some(-15.5),
                    Blocks::Q4K | Blocks::Q2K => Some(7.5),
                    Blocks::Q5K => Some(15.5),
                    _ => None,
                };
                for block in bytes.chunks_exact_mut(blocks.bytes()) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(self.gain).to_le_bytes());
                    if let Some(minimum) = minimum {
                        block[at + 2..at + 4].copy_from_slice(&f16::from_f32(self.gain * minimum).to_le_bytes());
                    }
                }
                bytes
            }
        }
    }
}

fn cases() -> (Cases, TensorFile) {
    let cases = read_json(&fixture("single_file.json")).unwrap();
    (cases, TensorFile::open(&fixture("single_file.safetensors")).unwrap())
}

/// Writes the checkpoint of one file to `folder`.
pub fn write_whole(folder: &Path) -> PathBuf {
    write(folder, &cases().0.whole);
    folder.join("checkpoint.safetensors")
}

/// Writes the parts in files of their own to `folder`; gives the transformer.
pub fn write_parts(folder: &Path) -> PathBuf {
    write(folder, &cases().0.parts);
    folder.join("transformer.gguf")
}

/// Writes `files` to `folder`.
fn write(folder: &Path, files: &Files) {
    for (name, listed) in files {
        let path = folder.join(name);
        if name.ends_with(".gguf") {
            let tensors: Vec<_> =
                listed.iter().map(|t| (t.name.as_str(), t.dtype.as_str(), &t.shape[..], t.bytes())).collect();
            std::fs::write(path, gguf::file(&tensors)).unwrap();
            continue;
        }
        let bytes: Vec<Vec<u8>> = listed.iter().map(Listed::bytes).collect();
        let views = listed.iter().zip(&bytes).map(|(t, bytes)| {
            let dtype = serde_json::from_value(serde_json::json!(t.dtype)).unwrap();
            (t.name.clone(), safetensors::tensor::TensorView::new(dtype, t.shape.clone(), bytes).unwrap())
        });
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd3")
}

/// Whether this processor multiplies bf16, so that it rounds operands to that.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Compares embeddings, latents and image of `model` with the case's. What the encoders were rounded to is the first bound where
/// everything is in single precision; where it is not, all are twice PyTorch's own errors in the same types.
fn check(model: &Model, case: &str, rounding: f64, device: &Device) {
    let (cases, io) = cases();
    let want = |name: &str| read(&io, &format!("{case}.{name}"));
    let halves: serde_json::Value = read_json(&fixture("single_file_halves.json")).unwrap();
    let halves = match (device, case) {
        (Device::Gpu(_), _) => Some(&halves[case]),
        (_, "parts") if has_bf16() => Some(&halves["parts on a cpu"]),
        _ => None,
    };
    let check = |got: &Tensor, name: &str, single: f64| {
        let allowed = halves.map_or(single, |h| 2.0 * h[name].as_f64().unwrap());
        let error = relative_error(got, &want(name));
        println!("{case} {name} on {device:?}: {error:.1e} of {allowed:.1e}");
        assert!(error <= allowed, "{case} on {device:?}: {name} off by {error:e}, allowed {allowed:e}");
    };
    let pipeline = Pipeline::load(model, device, None).unwrap();
    let text = TextEncoders::load(model, device).unwrap();
    let [prompts, negative] = [cases.prompts, vec![String::new()]].map(|p| text.encode(&p, cases.sequence).unwrap());
    check(&prompts.prompt_embeds, "prompt_embeds", rounding);
    check(&prompts.pooled_prompt_embeds, "pooled_prompt_embeds", rounding);
    let schedule = &pipeline.schedule;
    let policy = Policy { network: &*pipeline.network, schedule, adapter: None };
    let steps = Euler.steps(&schedule.sigmas(cases.steps, 16).unwrap());
    let path = sample::Path { steps: &steps, guidance: cases.guidance, noise: &[] };
    let latents =
        sample::sample(policy, path, want("noise").to(device), &prompts, Some(&negative), |_| Ok(())).unwrap();
    check(&latents, "latents", 1e-4);
    check(&pipeline.vae.decode(&latents), "image", 1e-4);
}

#[test]
fn a_checkpoint_in_one_file_samples_as_diffusers_does_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_whole(dir.path());
    let parts = Parts { tokenizers: Some(tiny()), ..Parts::default() };
    let source = Source { model: checkpoint, parts, ..Source::default() };
    // An embedding near the middle of two half-precision numbers may become either; these are up to 2^-10 apart.
    devices().iter().for_each(|d| check(&Model::open(&source).unwrap(), "whole", 2f64.powi(-10), d));
}

#[test]
fn parts_in_files_of_their_own_are_found_beside_a_gguf_and_sample_as_in_diffusers() {
    let dir = tempfile::tempdir().unwrap();
    let transformer = write_parts(dir.path());
    for name in ["tokenizer", "tokenizer_2", "tokenizer_3"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        for file in std::fs::read_dir(tiny().join(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join(name).join(file.file_name())).unwrap();
        }
    }
    let model = Model::in_folder(&transformer).unwrap();
    devices().iter().for_each(|d| check(&model, "parts", 1e-5, d));
    let line = model.describe().unwrap();
    assert!(line.contains("vae from ") && line.contains("text_encoder_3 from "), "{line}");
}

#[test]
fn files_take_the_place_of_parts_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    write_parts(dir.path());
    let at = |name: &str| Some(dir.path().join(name));
    let parts = Parts {
        transformer: at("transformer.gguf"),
        vae: at("sd3_vae.safetensors"),
        clip_l: at("clip_l.safetensors"),
        clip_g: at("clip_g.safetensors"),
        t5xxl: at("t5xxl-Q4_K_M.gguf"),
        tokenizers: None,
    };
    check(&Model::open(&Source { model: tiny(), parts, ..Source::default() }).unwrap(), "parts", 1e-5, &Device::Cpu);
}

#[test]
fn blocks_may_be_rounded_to_bf16_once() {
    let dir = tempfile::tempdir().unwrap();
    write_parts(dir.path());
    let (_, io) = cases();
    let parts = Parts { transformer: Some(dir.path().join("transformer.gguf")), ..Parts::default() };
    let model = Model::open(&Source { model: tiny(), parts, ..Source::default() }).unwrap();
    let velocity = |compute: Option<DType>| -> Tensor {
        let network = load_network(model.component("transformer").unwrap(), &Device::Cpu, compute).unwrap();
        let sizes = network.sizes();
        let (text, pooled) = (read(&io, "parts.prompt_embeds"), read(&io, "parts.pooled_prompt_embeds"));
        assert_eq!((text.width(), pooled.width()), (sizes.text, sizes.pooled));
        let condition = Condition { timestep: &[500.0], prompt_embeds: &text, pooled_prompt_embeds: &pooled };
        network.forward(&read(&io, "parts.noise"), condition, &Adapters::none(&Rows::all(None, 1)))
    };
    let error = relative_error(&velocity(Some(DType::Bf16)), &velocity(None));
    // Every product's operands keep 8 bits: relative errors of 2^-9 that add up over a few dozen layers as a random walk.
    assert!(error > 1e-4 && error < 2f64.powi(-9) * 8.0, "{error:e}");
}
