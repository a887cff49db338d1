use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::algorithms::{self, Point};
use engine::config::Place;
use engine::device::{Device, Tensor};
use engine::io::{TensorFile, output_file, safetensors};
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Layout, Module, Slot, named, select};
use engine::models::source::Model;
use engine::models::text::PromptEmbeds;
use engine::ops::copy;
use engine::rollout::schedule::Schedule;
use engine::train::update::{Batch, Inputs, Policies, accumulate};

use super::DeviceArg;

/// Compute one loss and its gradient at given points, for comparison with other implementations.
///
/// Reads x0, noise [N,C,h,w]; t, advantage [N]; prompt_embeds [N,L,D]; pooled_prompt_embeds [N,P]; and the adapters
/// lora.<module>.lora_A.weight, lora.<module>.lora_B.weight, lora_old.<module>... with modules named as in diffusers.
/// Writes loss [1]; velocity [N,C,h,w], and velocity_ref and velocity_old if the algorithm compares with them;
/// grad.<module>.lora_A.weight and .lora_B.weight.
#[derive(clap::Args)]
pub struct Args {
    /// Training config: model, LoRA and algorithm; a file, or the name of a published one.
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Override keys of the config.
    #[arg(long, value_name = "KEY.PATH=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Tensors to read.
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: PathBuf,
    /// Tensors to write.
    #[arg(long, value_name = "FILE.safetensors")]
    outputs: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

pub fn run(args: Args) -> Result<()> {
    let device = args.device.clone();
    device.run(move |device| step(&args, device))
}

fn step(args: &Args, device: &Device) -> Result<()> {
    let place = Place::find(&args.config)?;
    let config = place.load(&args.set)?;
    config.check().with_context(|| place.to_string())?;
    let compute = config.train.compute.precision();
    let model = Model::open(&config.source())?;
    let network = load_network(model.component("transformer")?, device, compute)?;
    let schedule = Schedule::load(model.component("scheduler")?)?;
    let (file, sizes, modules) = (TensorFile::open(&args.inputs)?, network.sizes(), network.modules());
    let shown = args.inputs.display();

    let x0 = file.tensor("x0", device)?;
    ensure!(
        x0.shape().len() == 4 && x0.dim(0) > 0 && x0.dim(1) == sizes.channels,
        "{shown}: x0 has shape {:?}, expected [points, {}, height, width]",
        x0.shape(),
        sizes.channels
    );
    sizes.check_latent(x0.dim(2), x0.dim(3)).with_context(|| format!("{shown}: x0"))?;
    let n = x0.dim(0);
    let tensor_of = |name: &str, shape: &[usize]| file.tensor_of(name, shape, device);
    let noise = tensor_of("noise", x0.shape())?;
    let (t, advantage) = (tensor_of("t", &[n])?.to_host(), tensor_of("advantage", &[n])?.to_host());
    let tokens = file.tensor("prompt_embeds", device)?.shape().get(1).copied().unwrap_or(0);
    let prompts = PromptEmbeds {
        prompt_embeds: tensor_of("prompt_embeds", &[n, tokens, sizes.text])?,
        pooled_prompt_embeds: tensor_of("pooled_prompt_embeds", &[n, sizes.pooled])?,
    };
    let layout = Arc::new(Layout::selected(modules, &select(modules, &config.lora.targets)?, config.lora.rank));
    let mut bank = AdapterBank::new(layout.clone(), config.lora.alpha / config.lora.rank as f32);
    for (slot, prefix) in [(Slot::Theta, "lora"), (Slot::Old, "lora_old")] {
        bank.set(slot, read_adapter(&file, prefix, modules, &layout, device)?);
    }

    let algorithm = algorithms::build(&config, &schedule, sizes.tokens(x0.dim(2), x0.dim(3)))?;
    output_file(&args.outputs)?;
    let policies = Policies {
        network: &*network,
        schedule: &schedule,
        bank: &bank,
        checkpointing: config.train.activation_checkpointing,
        loss_scale: 1.0,
    };
    // The file says what the noise is: the points' own stream is not drawn from.
    let point = |i: usize| Point::new(i, t[i], f64::from(advantage[i]));
    let points: Vec<Point> = (0..n).map(point).collect();
    let mut grads = Tensor::zeros(device, &[layout.len()]);
    let batch = Batch { points: &points, inputs: Inputs::Noised { x0, noise }, prompts, negative: None, probe: None };
    let done = accumulate(policies, &*algorithm, &batch, n, &mut grads);

    let loss = Tensor::from_slice(device, &[done.loss as f32], &[1]);
    let velocities = [("velocity", Some(done.theta)), ("velocity_ref", done.reference), ("velocity_old", done.old)];
    let found = velocities.into_iter().filter_map(|(name, t)| Some((name.to_string(), t?)));
    let grads = named(&grads, &layout, modules).into_iter().map(|(name, t)| (format!("grad.{name}"), t));
    let tensors = std::iter::once(("loss".to_string(), loss)).chain(found).chain(grads);
    safetensors::save(&args.outputs, tensors, &BTreeMap::new())
}

/// The adapter stored under `prefix`, flat.
fn read_adapter(
    file: &TensorFile,
    prefix: &str,
    modules: &[Module],
    layout: &Layout,
    device: &Device,
) -> Result<Tensor> {
    let mut flat = Tensor::scratch(device, &[layout.len()]);
    for (name, at, shape) in layout.parameters(modules) {
        copy::flat_into(&mut flat, at, &file.tensor_of(&format!("{prefix}.{name}"), &shape, device)?);
    }
    Ok(flat)
}
