//! What a run computes with and does not change: models, prompts, rewards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::optimizer::AdamW;
use crate::algorithms::Ram;
use crate::config::memory::{self, Inputs, MemoryPlan, PROMPT_CACHE};
use crate::config::raw::Prompts;
use crate::config::resolved::ModelSizes;
use crate::config::{Job, Resolved, TrainConfig};
use crate::data::PromptSet;
use crate::io::TensorFile;
use crate::models::lora::{self, Adapter};
use crate::models::mmdit;
use crate::models::text::{PromptEmbeds, TextEncoders, describe_truncated};
use crate::models::{Pipeline, autoencoder, index::ModelIndex};
use crate::rewards::{self, WeightedSum};
use crate::telemetry::warn;

/// A run's fixed parts.
pub struct Setup {
    /// The config with its derived sizes.
    pub config: Resolved,
    /// Transformer, VAE, schedule.
    pub pipeline: Pipeline,
    /// Prompts and their embeddings.
    pub prompts: PromptBank,
    /// Prompts to train on.
    pub train: PromptSet,
    /// Held-out prompts.
    pub eval: PromptSet,
    /// What is trained on.
    pub rewards: WeightedSum,
    /// The training method.
    pub algorithm: Ram,
    /// The optimiser's settings.
    pub optimizer: AdamW,
    /// Which of the transformer's modules are adapted.
    pub selected: Vec<bool>,
}

/// A config checked against its files, before any weight is touched.
pub struct Planned {
    /// The config with its derived sizes.
    pub config: Resolved,
    /// What memory it will take.
    pub memory: MemoryPlan,
    inputs: Inputs,
    train: PromptSet,
    eval: PromptSet,
}

/// Checks `raw` against the model's configs and the prompt files, and plans the memory. Reads no weights.
///
/// # Errors
/// One line naming the key or file, what was found, and the nearest that works.
pub fn plan(raw: TrainConfig, job: Job) -> Result<Planned> {
    reward_options(&raw)?;
    let index = ModelIndex::load(&raw.model)?;
    let transformer = mmdit::Config::load(&raw.model.join("transformer"))?;
    let vae = autoencoder::Config::load(&raw.model.join("vae"))?;
    let train = PromptSet::load(&raw.prompts.train).context("key prompts.train")?;
    let eval = PromptSet::load(&raw.prompts.eval).context("key prompts.eval")?;
    let sizes = ModelSizes {
        downscale: vae.downscale(),
        patch: transformer.patch_size,
        max_tokens: transformer.pos_embed_max_size,
        own_latent: transformer.sample_size,
    };
    let config = Resolved::new(raw, job, sizes, train.prompts.len(), eval.prompts.len())?;
    let reward_weights =
        reward_options(&config.raw)?.iter().map(|(name, o)| rewards::weight_bytes(name, o)).sum::<Result<_>>()?;

    let modules = mmdit::modules(&transformer);
    let selected = lora::select(&modules, &config.raw.lora.targets)?;
    let rank = config.raw.lora.rank;
    let chosen = || modules.iter().zip(&selected).filter(|(_, s)| **s).map(|(m, _)| m);
    let trains = |tail: &str| chosen().any(|m| m.name.ends_with(tail));
    let channels = &vae.block_out_channels;
    let inputs = Inputs {
        vae_channels: (channels[0], *channels.get(1).unwrap_or(&channels[0])),
        weights: weight_bytes(&config.raw.model, &index)?,
        reward_weights,
        adapter: chosen().map(|m| rank * (m.inputs + m.outputs)).sum(),
        text_tokens: TextEncoders::clip_tokens(&config.raw.model)? + config.raw.prompts.max_sequence_length,
        prompts: train.prompts.len() + eval.prompts.len(),
        trained_mlp: (trains("net.0.proj"), trains("net.2")),
        transformer,
    };
    let memory = MemoryPlan::new(&config, &inputs);
    Ok(Planned { config, memory, inputs, train, eval })
}

/// A config for evaluation alone: `trained`'s settings where there is one, the defaults otherwise.
pub fn evaluation_config(
    model: &Path,
    prompts: &Path,
    rewards: BTreeMap<String, f64>,
    reward_models: BTreeMap<String, PathBuf>,
    trained: Option<&TrainConfig>,
) -> TrainConfig {
    let paths = |max_sequence_length| Prompts { train: prompts.into(), eval: prompts.into(), max_sequence_length };
    let mut config = match trained {
        Some(trained) => {
            let mut models = trained.reward_models.clone();
            models.retain(|name, _| rewards.contains_key(name));
            models.extend(reward_models);
            TrainConfig { reward_models: models, rewards, ..trained.clone() }
        }
        None => TrainConfig::minimal(model.into(), paths(Prompts::max_sequence_length()), rewards, reward_models),
    };
    config.prompts = paths(config.prompts.max_sequence_length);
    config
}

/// Bytes of the weights of the pipeline in `folder`.
fn weight_bytes(folder: &Path, index: &ModelIndex) -> Result<u64> {
    const STEMS: [(&str, &str); 5] = [
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("text_encoder_3", "model"),
    ];
    let present = STEMS.iter().filter(|(component, _)| index.has(component));
    present.map(|(component, stem)| Ok(TensorFile::open_component(&folder.join(component), stem)?.bytes())).sum()
}

/// The rewards a config names, with what it says about each beside its weight.
///
/// # Errors
/// If a reward is unknown or an option does not fit it.
fn reward_options(raw: &TrainConfig) -> Result<Vec<(&str, rewards::Options)>> {
    for name in raw.reward_models.keys() {
        if !raw.rewards.contains_key(name) {
            bail!("reward_models.{name}: there is no reward of that name under [rewards]");
        }
    }
    let options =
        |name: &String| rewards::Options { model: raw.reward_models.get(name).cloned(), ..Default::default() };
    let all: Vec<_> = raw.rewards.keys().map(|name| (name.as_str(), options(name))).collect();
    all.iter().try_for_each(|(name, options)| rewards::check(name, options))?;
    Ok(all)
}

impl Planned {
    /// Fails if the machine has less memory than the plan needs, as far as it says.
    ///
    /// # Errors
    /// As [`MemoryPlan::check`].
    pub fn check_memory(&self) -> Result<()> {
        memory::available().map_or(Ok(()), |available| self.memory.check(available, &self.config, &self.inputs))
    }

    /// Loads the models and rewards.
    ///
    /// # Errors
    /// If the memory does not suffice; if a weight file is missing, damaged or does not fit its config; if a reward
    /// cannot judge a prompt.
    pub fn load(self) -> Result<Setup> {
        self.check_memory()?;
        let raw = &self.config.raw;
        let terms = reward_options(raw)?;
        let terms = terms.iter().map(|(name, options)| Ok((rewards::build(name, options)?, raw.rewards[*name])));
        let rewards = WeightedSum::new(terms.collect::<Result<_>>()?)?;
        rewards.check(&self.train)?;
        rewards.check(&self.eval)?;
        let pipeline = Pipeline::load(&raw.model)?;
        let encoders = Pipeline::load_text(&raw.model)?;
        let texts = self.train.prompts.iter().chain(&self.eval.prompts).map(|p| p.text.as_str());
        let truncated = encoders.truncated(texts, raw.prompts.max_sequence_length)?;
        describe_truncated(&truncated).iter().for_each(|line| warn(line));
        let prompts = PromptBank::new(encoders, raw.prompts.max_sequence_length);
        let selected = lora::select(pipeline.transformer.modules(), &raw.lora.targets)?;
        let (r, o) = (&raw.ram, &raw.optimizer);
        let algorithm = Ram { reward_multiplier: r.reward_multiplier, form: r.form, timestep_power: r.timestep_power };
        let optimizer = AdamW { lr: o.lr, beta1: o.beta1, beta2: o.beta2, weight_decay: o.weight_decay, eps: o.eps };
        Ok(Setup {
            pipeline,
            prompts,
            train: self.train,
            eval: self.eval,
            rewards,
            algorithm,
            optimizer,
            selected,
            config: self.config,
        })
    }
}

impl Setup {
    /// The adapter that training starts from: it changes nothing yet.
    pub fn initial_adapter(&self) -> Adapter {
        let lora = &self.config.raw.lora;
        let modules = self.pipeline.transformer.modules();
        Adapter::init(modules, &self.selected, lora.rank, lora.alpha, self.config.raw.seed)
    }
}

/// Encodes prompts when they first come up and remembers the result.
pub struct PromptBank {
    encoders: TextEncoders,
    max_sequence_length: usize,
    known: HashMap<String, PromptEmbeds>,
}

impl PromptBank {
    /// An empty bank.
    pub fn new(encoders: TextEncoders, max_sequence_length: usize) -> Self {
        Self { encoders, max_sequence_length, known: HashMap::new() }
    }

    /// The embeddings of `prompts`, one row each, in their order.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode(&mut self, prompts: &[&str]) -> Result<PromptEmbeds> {
        let held: usize = self.known.values().map(|e| 4 * e.prompt_embeds.len()).sum();
        if held as u64 > PROMPT_CACHE {
            self.known.clear();
        }
        let new: BTreeSet<&str> = prompts.iter().copied().filter(|p| !self.known.contains_key(*p)).collect();
        let new: Vec<String> = new.into_iter().map(str::to_string).collect();
        if !new.is_empty() {
            let encoded = self.encoders.encode(&new, self.max_sequence_length)?;
            self.known.extend(new.into_iter().enumerate().map(|(i, prompt)| (prompt, encoded.rows(&[i]))));
        }
        Ok(PromptEmbeds::concat(&prompts.iter().map(|p| &self.known[*p]).collect::<Vec<_>>()))
    }
}
