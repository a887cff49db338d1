use std::path::Path;

use engine::device::{Tensor, with_threads};
use engine::io::image::to_u8;
use engine::io::{TensorFile, lora, read_json};
use engine::models::Pipeline;
use engine::models::lora::Adapter;
use engine::rollout::sampler::Sampler;

use super::{fixture, relative_error};

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
    adapter: Option<&Adapter>,
) -> (Pipeline, Tensor) {
    let pipeline = Pipeline::load(folder).unwrap();
    let text = Pipeline::load_text(folder).unwrap();
    let negative = run.negative_prompt.clone().unwrap_or_default();
    let [prompts, negative] = [prompts, &[negative]].map(|p| text.encode(p, run.max_sequence_length).unwrap());
    let sampler = Sampler {
        model: &pipeline.transformer,
        adapter,
        schedule: &pipeline.schedule,
        steps: run.num_inference_steps,
        guidance: run.guidance_scale,
    };
    let latents = sampler.euler(noise, &prompts, Some(&negative), || Ok(())).unwrap();
    (pipeline, latents)
}

/// The largest difference in 8-bit levels between decoded latents and the image the reference made.
fn image_difference(pipeline: &Pipeline, latents: &Tensor, want: &[u8]) -> u8 {
    let images = pipeline.decode(latents);
    let got: Vec<u8> = (0..images.dim(0)).flat_map(|i| to_u8(&images.slice(i..i + 1)).data).collect();
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| g.abs_diff(*w)).max().unwrap()
}

#[test]
fn a_guided_sample_matches_diffusers_from_prompt_to_pixel() {
    let folder = fixture("pipeline/no_t5");
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let settings: serde_json::Value = read_json(&folder.join("io.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_value(settings["prompts"].clone()).unwrap();
    for name in ["plain", "negative", "unguided"] {
        let run: Run = serde_json::from_value(settings["runs"][name].clone()).unwrap();
        let (pipeline, latents) = sample(&folder, &prompts, &run, io.tensor("noise").unwrap(), None);
        let error = relative_error(&latents, &io.tensor(&format!("{name}.latents")).unwrap());
        println!("pipeline no_t5 {name}: {error:.1e}");
        assert!(error <= 1e-4, "{name}: {error:e}");
        if let Some(image) = io.entry(&format!("{name}.image")) {
            // A value within rounding of a half may fall on the other side.
            assert!(image_difference(&pipeline, &latents, image.raw()) <= 1, "{name}");
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
    let transformer = Pipeline::load(&folder).unwrap().transformer;
    let adapter = lora::load(&fixture("lora"), transformer.modules()).unwrap();
    let (_, latents) = sample(&folder, &prompts, &run, io.tensor("noise").unwrap(), Some(&adapter));
    let want = TensorFile::open(&fixture("lora/io.safetensors")).unwrap().tensor("latents").unwrap();
    let error = relative_error(&latents, &want);
    assert!(error <= 1e-4, "{error:e}");
    assert!(relative_error(&want, &io.tensor("plain.latents").unwrap()) > 1e-2, "the LoRA must matter");
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
    let go = || sample(&folder, &prompts, &run, io.tensor("noise").unwrap(), None);
    let (pipeline, latents) = go();
    let error = relative_error(&latents, &io.tensor("latents").unwrap());
    println!("tiny-sd3: {error:.1e}");
    assert!(error <= 1e-4, "{error:e} (tools/oracle/tiny_sd3.py must run again when the model is retrained)");
    assert!(image_difference(&pipeline, &latents, io.entry("image").unwrap().raw()) <= 1);
    assert_eq!(latents.data(), with_threads(1, go).unwrap().1.data(), "one thread");
}
