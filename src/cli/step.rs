use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::algorithms::{self, Point};
use engine::config::Place;
use engine::config::method::Method;
use engine::device::{Device, Tensor};
use engine::io::{TensorFile, output_file, safetensors};
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Layout, Module, Slot, named, select};
use engine::models::source::Model;
use engine::models::text::PromptEmbeds;
use engine::ops::copy;
use engine::rollout::schedule::Schedule;
use engine::train::points::{Batch, Inputs, Policies, accumulate};

use super::DeviceArg;

/// Compute one loss and its gradient at given points, for comparison with other implementations.
///
/// Reads advantage [N]; prompt_embeds [N,L,D]; pooled_prompt_embeds [N,P]; and the adapter lora.<module>.lora_A.weight,
/// lora.<module>.lora_B.weight with modules named as in diffusers. flow_grpo, flow_grpo_fast, cps and grpo_guard besides: x, x_next
/// [N,C,h,w], the samples before and after a step of the rollout; step, its number, and log_prob_old [N]; grpo_guard mean_old
/// [N,C,h,w]. rsm besides: x, step; with rsm.loss = "matching" velocity_old, noise [N,C,h,w], the velocity that the step was taken
/// along (with guidance) and its noise; with "ppo" x_next, log_prob_old, and for reweight = "guard" mean_old; its rows at steps
/// without forks are anchors. rsm_first_order, which reads no advantage, besides: x [N,C,h,w], a sample of the rollout at time t [N];
/// reward_grad [N,C,h,w], the gradient of the reward to the latent at its end or, with gradient = "one_step", to the clean one that x
/// points at, which is not clipped here. The others besides: x0, noise
/// [N,C,h,w]; t [N]. ram, awm, nft, dgpo and crd: the lagged adapter lora_old.<module>...; dpo and online_dpo the reference
/// lora_ref.<module>...; awm, if it is not on policy, log_prob_old [N], and with sum_first image [N]. What advantage is: 1 or 0 for
/// sft and online_sft, the reward for rwr; for dpo and online_dpo 1 for the better and -1 for the worse image of a pair, which pair
/// [N] numbers and which share noise and t; dgpo and crd have the number of its prompt's images in group [N]. With guidance, also of
/// the reference alone (kl_guidance_scale): negative_prompt_embeds [1,L,D], negative_pooled_prompt_embeds [1,P].
///
/// Writes loss [1]; velocity [N,C,h,w] (with guidance, if the loss has it), and velocity_ref and velocity_old if the
/// algorithm compares with them; ratio [N] if it weighs by one; grad.<module>.lora_A.weight and .lora_B.weight.
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

    // Methods that are trained on the steps of a rollout say where they started; the others make their points of clean latents.
    let is_stepped = config.algorithm.is_trained_on_steps();
    let follows_gradients = config.algorithm.follows_gradients();
    let first = if is_stepped || follows_gradients { "x" } else { "x0" };
    let x = file.tensor(first, device)?;
    ensure!(
        x.shape().len() == 4 && x.dim(0) > 0 && x.dim(1) == sizes.channels,
        "{shown}: {first} has shape {:?}, expected [points, {}, height, width]",
        x.shape(),
        sizes.channels
    );
    sizes.check_latent(x.dim(2), x.dim(3)).with_context(|| format!("{shown}: {first}"))?;
    let (n, shape) = (x.dim(0), x.shape().to_vec());
    let tensor_of = |name: &str, shape: &[usize]| file.tensor_of(name, shape, device);
    let numbers = |name: &str| Ok::<_, anyhow::Error>(tensor_of(name, &[n])?.to_host());
    let optional = |name: &str| file.entry(name).map(|_| numbers(name)).transpose();
    let algorithm = algorithms::build(&config, &schedule, sizes.tokens(x.dim(2), x.dim(3)))?;
    let needs = algorithm.needs();
    let inputs = if needs.velocity_old {
        Inputs::Matched { velocity_old: tensor_of("velocity_old", &shape)?, noise: tensor_of("noise", &shape)?, x }
    } else if is_stepped {
        let mean_old = needs.mean_old.then(|| tensor_of("mean_old", &shape)).transpose()?;
        Inputs::Stepped { next: tensor_of("x_next", &shape)?, mean_old, x }
    } else if follows_gradients {
        Inputs::Led { reward_gradient: tensor_of("reward_grad", &shape)?, x }
    } else {
        Inputs::Noised { noise: tensor_of("noise", &shape)?, x0: x }
    };
    let advantage = if follows_gradients { vec![0.0; n] } else { numbers("advantage")? };
    let is_compared = matches!(inputs, Inputs::Stepped { .. });
    let log_prob_old = if is_compared { Some(numbers("log_prob_old")?) } else { optional("log_prob_old")? };
    let (t, steps) = if is_stepped {
        (Vec::new(), whole("step", &numbers("step")?, config.rollout.num_inference_steps)?)
    } else {
        (numbers("t")?, Vec::new())
    };
    let together = match config.algorithm {
        Method::Dpo | Method::OnlineDpo => {
            let pair = whole("pair", &numbers("pair")?, n)?;
            check_pairs(&pair, &advantage, &t).with_context(|| shown.to_string())?;
            Some(pair)
        }
        Method::Dgpo | Method::Crd => Some(whole("group", &numbers("group")?, n)?),
        Method::Awm => optional("image")?.map(|image| whole("image", &image, n)).transpose()?,
        _ => None,
    };
    let sigmas = schedule.sigmas(config.rollout.num_inference_steps, sizes.tokens(shape[2], shape[3]))?;
    let tokens = file.tensor("prompt_embeds", device)?.shape().get(1).copied().unwrap_or(0);
    let prompts = PromptEmbeds {
        prompt_embeds: tensor_of("prompt_embeds", &[n, tokens, sizes.text])?,
        pooled_prompt_embeds: tensor_of("pooled_prompt_embeds", &[n, sizes.pooled])?,
    };
    let layout = Arc::new(Layout::selected(modules, &select(modules, &config.lora.targets)?, config.lora.rank));
    let mut bank = AdapterBank::new(layout.clone(), config.lora.alpha / config.lora.rank as f32);
    let has = |slot| algorithm.slots().contains(&slot);
    for (slot, prefix, is_read) in [
        (Slot::Theta, "lora", true),
        (Slot::Old, "lora_old", has(Slot::Old)),
        (Slot::Reference, "lora_ref", has(Slot::Reference) && needs.reference),
    ] {
        if is_read {
            bank.set(slot, read_adapter(&file, prefix, modules, &layout, device)?);
        }
    }
    let negative = if algorithms::is_guided(&*algorithm) {
        Some(PromptEmbeds {
            prompt_embeds: tensor_of("negative_prompt_embeds", &[1, tokens, sizes.text])?,
            pooled_prompt_embeds: tensor_of("negative_pooled_prompt_embeds", &[1, sizes.pooled])?,
        })
    } else {
        None
    };

    output_file(&args.outputs)?;
    let policies = Policies {
        network: &*network,
        schedule: &schedule,
        bank: &bank,
        checkpointing: config.train.activation_checkpointing,
        loss_scale: 1.0,
    };
    // The file says what the noise is: the points' own stream is not drawn from.
    let point = |i: usize| Point {
        step: steps.get(i).copied().unwrap_or(0),
        log_prob_old: log_prob_old.as_ref().map(|all| f64::from(all[i])),
        together: together.as_ref().map(|of| of[i]),
        ..Point::new(i, t.get(i).copied().unwrap_or_else(|| sigmas[steps[i]]), f64::from(advantage[i]))
    };
    let mut points: Vec<Point> = (0..n).map(point).collect();
    algorithm.weigh(&mut points);
    let mut grads = Tensor::zeros(device, &[layout.len()]);
    let batch = Batch { points: &points, inputs, prompts, negative, probe: None };
    let done = accumulate(policies, &*algorithm, &batch, None, n, &mut grads);

    let loss = Tensor::from_slice(device, &[done.loss as f32], &[1]);
    let velocities = [("velocity", Some(done.theta)), ("velocity_ref", done.reference), ("velocity_old", done.old)];
    let ratios: Vec<f32> = done.ratios.iter().map(|r| *r as f32).collect();
    let ratio = (!ratios.is_empty()).then(|| ("ratio".to_string(), Tensor::from_slice(device, &ratios, &[n])));
    let found = velocities.into_iter().filter_map(|(name, t)| Some((name.to_string(), t?)));
    let grads = named(&grads, &layout, modules).into_iter().map(|(name, t)| (format!("grad.{name}"), t));
    let tensors = std::iter::once(("loss".to_string(), loss)).chain(ratio).chain(found).chain(grads);
    safetensors::save(&args.outputs, tensors, &BTreeMap::new())
}

/// Numbers of the tensor `name` as whole ones below `end`.
fn whole(name: &str, numbers: &[f32], end: usize) -> Result<Vec<usize>> {
    let one = |x: &f32| {
        ensure!(x.fract() == 0.0 && (0.0..end as f32).contains(x), "{name}: found {x}, expected 0 to {}", end - 1);
        Ok(*x as usize)
    };
    numbers.iter().map(one).collect()
}

/// Fails unless each of the pairs has a better and a worse image at one time.
fn check_pairs(pair: &[usize], advantage: &[f32], t: &[f32]) -> Result<()> {
    for (i, number) in pair.iter().enumerate() {
        let mut others = (0..pair.len()).filter(|j| *j != i && pair[*j] == *number);
        let other = others.next().filter(|_| others.next().is_none());
        let other = other.with_context(|| format!("pair {number} has not two rows"))?;
        let found = [advantage[i], advantage[other]];
        ensure!(
            found == [1.0, -1.0] || found == [-1.0, 1.0],
            "the advantages of pair {number} are {} and {}, expected 1 and -1",
            found[0],
            found[1]
        );
        ensure!(t[i] == t[other], "pair {number} is at t = {} and {}, expected one time", t[i], t[other]);
    }
    Ok(())
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
