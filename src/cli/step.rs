use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use engine::algorithms::{Points, Ram};
use engine::config;
use engine::device::Tensor;
use engine::io::{TensorFile, output_file, safetensors};
use engine::models::lora::{Adapter, Factor, Module, select};
use engine::models::mmdit::Mmdit;
use engine::models::text::PromptEmbeds;
use engine::rollout::schedule::Schedule;
use engine::train::update::{Policies, Step, accumulate};

use super::DeviceArg;

/// Compute one loss and its gradient at given points, for comparison with other implementations.
///
/// Reads x0, noise [N,C,h,w]; t, advantage [N]; prompt_embeds [N,L,D]; pooled_prompt_embeds [N,P]; and the adapters
/// lora.<module>.lora_A.weight, lora.<module>.lora_B.weight, lora_old.<module>... with modules named as in diffusers.
/// Writes loss [1]; velocity, velocity_ref, velocity_old [N,C,h,w]; grad.<module>.lora_A.weight and .lora_B.weight.
#[derive(clap::Args)]
pub struct Args {
    /// Training config: model, LoRA and algorithm.
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
    device.run(move || step(&args))
}

fn step(args: &Args) -> Result<()> {
    let config = config::load(&args.config, &args.set)?;
    config.check().with_context(|| args.config.display().to_string())?;
    let model = Mmdit::load(&config.model.join("transformer"))?;
    let schedule = Schedule::load(&config.model.join("scheduler"))?;
    let file = TensorFile::open(&args.inputs)?;
    let shown = args.inputs.display();

    let x0 = file.tensor("x0")?;
    ensure!(
        x0.shape().len() == 4 && x0.dim(0) > 0 && x0.dim(1) == model.config.in_channels,
        "{shown}: x0 has shape {:?}, expected [points, {}, height, width]",
        x0.shape(),
        model.config.in_channels
    );
    model.check_latent_size(x0.dim(2), x0.dim(3)).with_context(|| format!("{shown}: x0"))?;
    let n = x0.dim(0);
    let noise = file.tensor_of("noise", x0.shape())?;
    let (t, advantage) = (file.tensor_of("t", &[n])?, file.tensor_of("advantage", &[n])?);
    let prompt_embeds = file.tensor("prompt_embeds")?;
    let tokens = prompt_embeds.shape().get(1).copied().unwrap_or(0);
    let prompts = PromptEmbeds {
        prompt_embeds: file.tensor_of("prompt_embeds", &[n, tokens, model.config.joint_attention_dim])?,
        pooled_prompt_embeds: file.tensor_of("pooled_prompt_embeds", &[n, model.config.pooled_projection_dim])?,
    };
    let selected = select(model.modules(), &config.lora.targets)?;
    let adapter = |prefix| read_adapter(&file, prefix, model.modules(), &selected, config.lora.rank, config.lora.alpha);
    let (theta, old) = (adapter("lora")?, adapter("lora_old")?);

    let ram = Ram {
        reward_multiplier: config.ram.reward_multiplier,
        form: config.ram.form,
        timestep_power: config.ram.timestep_power,
    };
    output_file(&args.outputs)?;
    let policies = Policies {
        model: &model,
        schedule: &schedule,
        theta: &theta,
        old: &old,
        checkpointing: config.train.activation_checkpointing,
    };
    let mut grads = theta.zeros_like();
    let points = Points { x0: &x0, noise: &noise, t: t.data(), advantage: advantage.data() };
    let Step { loss, theta, reference, old } = accumulate(policies, &ram, &points, &prompts, n, &mut grads);

    let loss = Tensor::from_slice(&[loss as f32], &[1]);
    let named = [("loss", &loss), ("velocity", &theta), ("velocity_ref", &reference), ("velocity_old", &old)];
    let named = named.into_iter().map(|(name, t)| (name.to_string(), t));
    let names = grads.names(model.modules()).into_iter().map(|n| format!("grad.{n}"));
    safetensors::save(&args.outputs, named.chain(names.zip(grads.tensors())), &BTreeMap::new())
}

/// The adapter stored under `prefix`, with factors for exactly the selected modules.
fn read_adapter(
    file: &TensorFile,
    prefix: &str,
    modules: &[Module],
    selected: &[bool],
    rank: usize,
    alpha: f32,
) -> Result<Adapter> {
    let factors = modules.iter().zip(selected).map(|(m, selected)| {
        if !selected {
            return Ok(None);
        }
        let a = file.tensor_of(&format!("{prefix}.{}.lora_A.weight", m.name), &[rank, m.inputs])?;
        let b = file.tensor_of(&format!("{prefix}.{}.lora_B.weight", m.name), &[m.outputs, rank])?;
        Ok(Some(Factor { a, b }))
    });
    Ok(Adapter::from_factors(alpha / rank as f32, factors.collect::<Result<_>>()?))
}
