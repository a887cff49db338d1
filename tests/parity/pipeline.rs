use std::path::Path;

use engine::device::{Device, Tensor, with_threads};
use engine::io::{TensorFile, read_json};
use engine::models::lora::{AdapterBank, Slot, file};
use engine::models::source::Model;
use engine::models::text::TextEncoders;
use engine::rewards::Images;
use engine::rollout::Pipeline;
use engine::rollout::sample::{self, Policy};
use engine::rollout::sampler::{Euler, Sampler};

use super::{bits, devices, fixture, read, relative_error};

/// What a run of the reference pipeline was asked for.
#[derive(serde::Deserialize)]
struct Run {
    negative_prompt: Option<String>,
    guidance_scale: f32,
    num_inference_steps: usize,
    max_sequence_length: usize,
}

fn sample(
    folder: &Path,
    prompts: &[String],
    run: &Run,
    noise: Tensor,
    adapter: Option<&AdapterBank>,
) -> (Pipeline, Tensor) {
    let (model, device) = (Model::in_folder(folder).unwrap(), &noise.device());
    let pipeline = Pipeline::load(&model, device, None).unwrap();
    let text = TextEncoders::load(&model, device).unwrap();
    let negative = run.negative_prompt.clone().unwrap_or_default();
    let [prompts, negative] = [prompts, &[negative]].map(|p| text.encode(p, run.max_sequence_length).unwrap());
    let policy = Policy {
        network: &*pipeline.network,
        schedule: &pipeline.schedule,
        adapter: adapter.map(|bank| (bank, Slot::Theta)),
    };
    let tokens = pipeline.network.sizes().tokens(noise.dim(2), noise.dim(3));
    let steps = Euler.steps(&pipeline.schedule.sigmas(run.num_inference_steps, tokens).unwrap());
    let path = sample::Path { steps: &steps, guidance: run.guidance_scale, noise: &[] };
    let latents = sample::sample(policy, path, noise, &prompts, Some(&negative), |_| Ok(())).unwrap();
    (pipeline, latents)
}

/// The largest difference in 8-bit levels between decoded latents and the image the reference made.
fn image_difference(pipeline: &Pipeline, latents: &Tensor, want: &[u8]) -> u8 {
    let got = Images::decoded(pipeline.vae.decode(latents)).bytes().to_raw();
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| g.abs_diff(*w)).max().unwrap()
}

#[test]
fn a_guided_sample_matches_diffusers_from_prompt_to_pixel() {
    let folder = fixture("pipeline/no_t5");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let settings: serde_json::Value = read_json(&folder.join("io.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_value(settings["prompts"].clone()).unwrap();
    let cases = ["plain", "negative", "unguided"].map(|name| (name, Device::Cpu));
    let gpus = devices().into_iter().skip(1).map(|gpu| ("plain", gpu));
    for (name, device) in cases.into_iter().chain(gpus) {
        let run: Run = serde_json::from_value(settings["runs"][name].clone()).unwrap();
        let (pipeline, latents) = sample(&folder, &prompts, &run, read(&io, "noise").to(&device), None);
        let error = relative_error(&latents, &read(&io, &format!("{name}.latents")));
        println!("pipeline no_t5 {name} on {device:?}: {error:.1e}");
        assert!(error <= 1e-4, "{name} on {device:?}: {error:e}");
        if let Some(image) = io.entry(&format!("{name}.image")) {
            // A value within rounding of a half may fall on the other side.
            assert!(image_difference(&pipeline, &latents, image.raw()) <= 1, "{name} on {device:?}");
        }
    }
}

#[test]
fn a_lora_of_diffusers_changes_the_sample_as_it_does_there() {
    let folder = fixture("pipeline/no_t5");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let settings: serde_json::Value = read_json(&folder.join("io.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_value(settings["prompts"].clone()).unwrap();
    let run: Run = serde_json::from_value(settings["runs"]["plain"].clone()).unwrap();
    let network = Pipeline::load(&Model::in_folder(&folder).unwrap(), &Device::Cpu, None).unwrap().network;
    let want = read(&TensorFile::open(&fixture("lora/io.safetensors")).unwrap(), "latents");
    for device in devices() {
        let adapter = file::load(&fixture("lora"), network.modules(), &device).unwrap();
        let (_, latents) = sample(&folder, &prompts, &run, read(&io, "noise").to(&device), Some(&adapter));
        let error = relative_error(&latents, &want);
        assert!(error <= 1e-4, "{device:?}: {error:e}");
    }
    assert!(relative_error(&want, &read(&io, "plain.latents")) > 1e-2, "the LoRA must matter");
}

#[test]
fn the_tiny_model_samples_what_diffusers_samples_from_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd3");
    let io = TensorFile::open(&fixture("tiny_sd3.safetensors")).unwrap();
    let setting = |key: &str| io.metadata()[key].clone();
    let prompts: Vec<String> = serde_json::from_str(&setting("prompts")).unwrap();
    let run = Run {
        negative_prompt: None,
        guidance_scale: setting("guidance").parse().unwrap(),
        num_inference_steps: setting("steps").parse().unwrap(),
        max_sequence_length: setting("max_sequence_length").parse().unwrap(),
    };
    let go = || sample(&folder, &prompts, &run, read(&io, "noise"), None);
    let (pipeline, latents) = go();
    let error = relative_error(&latents, &read(&io, "latents"));
    println!("tiny-sd3: {error:.1e}");
    assert!(error <= 1e-4, "{error:e} (tools/oracle/tiny_sd3.py must run again when the model is retrained)");
    assert!(image_difference(&pipeline, &latents, io.entry("image").unwrap().raw()) <= 1);
    assert!(bits(&latents) == bits(&with_threads(1, go).unwrap().1), "one thread");
}
