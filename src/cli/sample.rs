use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use engine::device::philox::Purpose;
use engine::device::{Device, Tensor};
use engine::io::{TensorFile, image, output_file, output_folder, safetensors};
use engine::models::lora::Slot;
use engine::models::lora::file::{LoraFile, TRANSFORMER};
use engine::models::text::TextEncoders;
use engine::ops::{copy, noise, norm};
use engine::rewards::Images;
use engine::rollout::sample::{self, Path, Policy, Visit};
use engine::rollout::sampler;
use engine::rollout::schedule::check_steps;
use engine::rollout::{Pipeline, image_keys};
use engine::telemetry::Progress;
use serde::Serialize;

use super::json::{self, JsonArg};
use super::{DeviceArg, PartArgs, encode_prompts, sequence_length};

/// Images that go through the model together; results do not depend on it.
const BATCH: usize = 8;

/// Sample images from prompts.
///
/// Writes 0.png, 1.png, ... in the order of the prompts. The same seed gives the same image whatever the number of
/// prompts and threads.
#[derive(clap::Args)]
#[command(after_long_help = json::keys(KEYS))]
pub struct Args {
    /// Model: a folder in the layout of diffusers, or a checkpoint of one file.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    #[command(flatten)]
    parts: PartArgs,
    /// LoRA of diffusers, PEFT, sd-scripts or ComfyUI: a file, its folder, or the output folder of a run.
    #[arg(long, value_name = "PATH")]
    lora: Option<PathBuf>,
    /// Prompt; may be given several times, one image each.
    #[arg(long, value_name = "TEXT", required = true, num_args = 1..)]
    prompt: Vec<String>,
    /// What guidance leads away from.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    negative_prompt: String,
    /// Steps.
    #[arg(long, default_value_t = 28, value_name = "N")]
    steps: usize,
    /// How steps are taken: euler; flow, cps, dance, ddim and sa, which add noise; dpm2.
    #[arg(long, default_value = "euler", value_name = "NAME")]
    sampler: String,
    /// How much noise: 0 none, for flow, cps and dance that of published runs is about 0.7.
    #[arg(long, default_value_t = 0.0, value_name = "ETA")]
    noise_level: f64,
    /// Classifier-free guidance scale; 1 turns it off. The default is what Stable Diffusion 3.5 Medium is sampled with.
    #[arg(long, default_value_t = 4.5, value_name = "G")]
    guidance: f32,
    /// Seed of the initial noise.
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Image size in pixels; the model's own if left out.
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    size: Option<(usize, usize)>,
    /// T5 tokens per prompt, 1 to 512.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = sequence_length)]
    max_sequence_length: usize,
    /// Start from tensor `noise` [prompts, channels, height/8, width/8] of this file instead of the seed's noise.
    #[arg(long, value_name = "FILE.safetensors")]
    noise: Option<PathBuf>,
    /// Also write tensor `latents`, as it is before decoding.
    #[arg(long, value_name = "FILE.safetensors")]
    save_latents: Option<PathBuf>,
    /// Folder for the images.
    #[arg(long, default_value = "out", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

const KEYS: &[(&str, &str)] = &[
    ("images[]", "files, in the order of the prompts"),
    ("prompts[]", "as given"),
    ("seed", "if the noise was drawn from it"),
    ("steps", "how many"),
    ("guidance", "scale"),
    ("latents", "file of --save-latents"),
];

/// What --json gives.
#[derive(Serialize)]
struct Answer<'a> {
    images: Vec<PathBuf>,
    prompts: &'a [String],
    seed: Option<u64>,
    steps: usize,
    guidance: f32,
    latents: Option<&'a std::path::Path>,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    sides.ok_or_else(|| "expected WIDTHxHEIGHT in pixels, such as 512x768".into())
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move |device| sample(&args, device))
}

fn sample(args: &Args, device: &Device) -> Result<()> {
    check_steps("--steps", args.steps)?;
    let sampler = sampler::Kind::named("--sampler", &args.sampler)?;
    sampler.check("--noise-level", args.noise_level)?;
    ensure!(args.guidance.is_finite() && args.guidance >= 0.0, "--guidance is {}, expected 0 or more", args.guidance);
    let model = args.parts.open(&args.model)?;
    let pipeline = Pipeline::load(&model, device, None)?;
    let noise = starting_noise(args, &pipeline, device)?;
    let mut text = TextEncoders::load(&model, device)?;
    let bank = match &args.lora {
        Some(path) => {
            let lora = LoraFile::open(path)?;
            text.merge(&lora)?;
            lora.bank(TRANSFORMER, pipeline.network.modules(), device)?
        }
        None => None,
    };
    args.save_latents.as_deref().map(output_file).transpose()?;
    output_folder(&args.out)?;

    let policy = Policy {
        network: &*pipeline.network,
        schedule: &pipeline.schedule,
        adapter: bank.as_ref().map(|bank| (bank, Slot::Theta)),
    };
    let tokens = pipeline.network.sizes().tokens(noise.dim(2), noise.dim(3));
    let steps = sampler.at(args.noise_level).steps(&pipeline.schedule.sigmas(args.steps, tokens)?);
    let path = Path { steps: &steps, guidance: args.guidance, noise: &[] };
    let count = args.prompt.len();
    let streams = image_keys(args.seed, Purpose::SamplerNoise, 0, count);
    let mut texts = args.prompt.clone();
    texts.extend(path.is_guided().then(|| args.negative_prompt.clone()));
    let embeds = encode_prompts(&text, &texts, args.max_sequence_length)?;
    drop(text);
    let negative = path.is_guided().then(|| embeds.rows(&[count]));

    // Decoding a batch counts as one more step.
    let progress = Progress::new("sampling", (count.div_ceil(BATCH) * (args.steps + 1)) as u64);
    let rows: Vec<usize> = (0..count).collect();
    let mut latents = Tensor::scratch(device, noise.shape());
    for rows in rows.chunks(BATCH) {
        let noise = noise.slice(rows[0]..rows[0] + rows.len());
        let on_step = |_: Visit| {
            progress.step(1);
            Ok(())
        };
        let path = Path { noise: &streams[rows[0]..rows[0] + rows.len()], ..path };
        let batch = sample::sample(policy, path, noise, &embeds.rows(rows), negative.as_ref(), on_step)?;
        sample::check_finite(&batch, |i| &args.prompt[rows[i]])?;
        for (picture, row) in Images::decoded(pipeline.vae.decode(&batch)).pictures().iter().zip(rows) {
            image::write_png(&args.out.join(format!("{row}.png")), picture)?;
        }
        progress.step(1);
        copy::rows_into(&mut latents, rows[0], &batch);
    }
    progress.finish();
    if let Some(path) = &args.save_latents {
        safetensors::save(path, [("latents".to_string(), latents)], &BTreeMap::new())?;
    }
    let answer = Answer {
        images: (0..count).map(|row| args.out.join(format!("{row}.png"))).collect(),
        prompts: &args.prompt,
        seed: args.noise.is_none().then_some(args.seed),
        steps: args.steps,
        guidance: args.guidance,
        latents: args.save_latents.as_deref(),
    };
    let plural = if count == 1 { "" } else { "s" };
    args.json.answer(&answer, || format!("wrote {count} image{plural} to {}\n", args.out.display()))
}

/// The latents to start from: those of `--noise`, or the seed's.
fn starting_noise(args: &Args, pipeline: &Pipeline, device: &Device) -> Result<Tensor> {
    let (sizes, count) = (pipeline.network.sizes(), args.prompt.len());
    let latent_of = |(width, height): (usize, usize)| pipeline.latent_size(height, width);
    let Some(path) = &args.noise else {
        let own = pipeline.own_size();
        let (height, width) = latent_of(args.size.unwrap_or((own, own)))?;
        return Ok(noise::normal(
            device,
            &image_keys(args.seed, Purpose::InitialLatent, 0, count),
            &[count, sizes.channels, height, width],
        ));
    };
    let noise = TensorFile::open(path)?.tensor("noise", device)?;
    let file = path.display();
    let &[prompts, found, height, width] = noise.shape() else {
        bail!("{file}: noise has shape {:?}, expected [prompts, channels, height, width]", noise.shape());
    };
    if let Some(size) = args.size {
        let (h, w) = latent_of(size)?;
        let want = [count, sizes.channels, h, w];
        ensure!(noise.shape() == want, "{file}: noise has shape {:?}, expected {want:?} for --size", noise.shape());
    }
    let want = [count, sizes.channels, height, width];
    ensure!(
        (prompts, found) == (want[0], want[1]),
        "{file}: noise has shape {:?}, expected {want:?} for {} prompts and {} channels",
        noise.shape(),
        want[0],
        sizes.channels
    );
    sizes.check_latent(height, width).map_err(|e| anyhow::anyhow!("{file}: {e}"))?;
    ensure!(norm::first_non_finite(&noise).is_none(), "{file}: noise holds a value that is not finite");
    Ok(noise)
}
