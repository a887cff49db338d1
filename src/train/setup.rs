//! What a run computes with and does not change: models, prompts, rewards.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::optimizer::AdamW;
use crate::algorithms::Ram;
use crate::config::memory::{self, Inputs, MemoryPlan};
use crate::config::raw::Prompts;
use crate::config::resolved::ModelSizes;
use crate::config::{Resolved, TrainConfig};
use crate::data::PromptSet;
use crate::device::Tensor;
use crate::models::lora::{self, Adapter};
use crate::models::mmdit;
use crate::models::pipeline::warn_truncated;
use crate::models::text::{PromptEmbeds, TextEncoders};
use crate::models::{Pipeline, autoencoder, index::ModelIndex};
use crate::rewards::{self, WeightedSum};

/// Embeddings kept in memory are dropped beyond this many bytes and encoded again when they come up.
const PROMPT_CACHE: usize = 1 << 29;

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
    train: PromptSet,
    eval: PromptSet,
    rewards: WeightedSum,
}

/// Checks `raw` against the model's configs, the prompt files and the rewards, and plans the memory. Reads no weights.
///
/// # Errors
/// One line naming the key or file, what was found, and the nearest that works.
pub fn plan(raw: TrainConfig) -> Result<Planned> {
    raw.rewards.keys().try_for_each(|name| rewards::check_name(name))?;
    ModelIndex::load(&raw.model)?;
    let transformer = mmdit::Config::load(&raw.model.join("transformer"))?;
    let vae = autoencoder::Config::load(&raw.model.join("vae"))?;
    let train = PromptSet::load(&raw.prompts.train).context("key prompts.train")?;
    let eval = PromptSet::load(&raw.prompts.eval).context("key prompts.eval")?;
    let sizes = ModelSizes {
        downscale: vae.downscale(),
        patch: transformer.patch_size,
        max_latent: transformer.pos_embed_max_size * transformer.patch_size,
        own_latent: transformer.sample_size,
    };
    let config = Resolved::new(raw, sizes, train.prompts.len(), eval.prompts.len())?;
    let rewards = build_rewards(&config.raw)?;
    rewards.check(&train)?;
    rewards.check(&eval)?;

    let modules = mmdit::modules(&transformer);
    let selected = lora::select(&modules, &config.raw.lora.targets)?;
    let rank = config.raw.lora.rank;
    let chosen = || modules.iter().zip(&selected).filter(|(_, s)| **s).map(|(m, _)| m);
    let trains = |tail: &str| chosen().any(|m| m.name.ends_with(tail));
    let inputs = Inputs {
        transformer: &transformer,
        weights: weight_bytes(&config.raw.model)?,
        adapter: chosen().map(|m| rank * (m.inputs + m.outputs)).sum(),
        text_tokens: TextEncoders::clip_tokens(&config.raw.model)? + config.raw.prompts.max_sequence_length,
        trained_mlp: (trains("net.0.proj"), trains("net.2")),
    };
    let memory = MemoryPlan::new(&config, &inputs);
    if let Some(available) = memory::available() {
        memory.check(available, &config, &inputs)?;
    }
    Ok(Planned { config, memory, train, eval, rewards })
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
    // Nothing is rolled out for training: the smallest epoch there is passes every check.
    config.rollout.num_prompts_per_epoch = 1;
    config.rollout.num_images_per_prompt = config.rollout.batch_size.max(2);
    config.ram.num_noisings = config.train.batch_size;
    config
}

/// Bytes of all safetensors files below `folder`.
fn weight_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            total += weight_bytes(&path)?;
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            total += path.metadata().map_or(0, |m| m.len());
        }
    }
    Ok(total)
}

/// The weighted sum of the rewards a config names.
///
/// # Errors
/// If a reward is unknown or its model cannot be read.
pub fn build_rewards(raw: &TrainConfig) -> Result<WeightedSum> {
    for name in raw.reward_models.keys() {
        if !raw.rewards.contains_key(name) {
            bail!("reward_models.{name}: there is no reward of that name under [rewards]");
        }
    }
    let terms = raw.rewards.iter().map(|(name, weight)| {
        let options = rewards::Options { model: raw.reward_models.get(name).cloned(), ..Default::default() };
        Ok((rewards::build(name, &options)?, *weight))
    });
    WeightedSum::new(terms.collect::<Result<_>>()?)
}

impl Planned {
    /// Loads the models.
    ///
    /// # Errors
    /// If a weight file is missing, damaged or does not fit its config.
    pub fn load(self) -> Result<Setup> {
        let raw = &self.config.raw;
        let pipeline = Pipeline::load(&raw.model)?;
        let prompts = PromptBank::new(Pipeline::load_text(&raw.model)?, raw.prompts.max_sequence_length);
        let selected = lora::select(pipeline.transformer.modules(), &raw.lora.targets)?;
        let (r, o) = (&raw.ram, &raw.optimizer);
        let algorithm = Ram { reward_multiplier: r.reward_multiplier, form: r.form, timestep_power: r.timestep_power };
        let optimizer = AdamW { lr: o.lr, beta1: o.beta1, beta2: o.beta2, weight_decay: o.weight_decay, eps: o.eps };
        Ok(Setup {
            pipeline,
            prompts,
            train: self.train,
            eval: self.eval,
            rewards: self.rewards,
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
    warned: bool,
}

impl PromptBank {
    /// An empty bank.
    pub fn new(encoders: TextEncoders, max_sequence_length: usize) -> Self {
        Self { encoders, max_sequence_length, known: HashMap::new(), warned: false }
    }

    /// The embeddings of `prompts`, one row each, in their order.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode(&mut self, prompts: &[&str]) -> Result<PromptEmbeds> {
        let held: usize = self.known.values().map(|e| 4 * e.prompt_embeds.len()).sum();
        if held > PROMPT_CACHE {
            self.known.clear();
        }
        let mut new: Vec<String> =
            prompts.iter().filter(|p| !self.known.contains_key(**p)).map(|p| p.to_string()).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let encoded = self.encoders.encode(&new, self.max_sequence_length)?;
            if !self.warned && !encoded.truncated.is_empty() {
                warn_truncated(&encoded.truncated);
                self.warned = true;
            }
            for (i, prompt) in new.into_iter().enumerate() {
                self.known.insert(prompt, encoded.rows(&[i]));
            }
        }
        let rows: Vec<&PromptEmbeds> = prompts.iter().map(|p| &self.known[*p]).collect();
        Ok(PromptEmbeds {
            prompt_embeds: Tensor::concat(&rows.iter().map(|r| &r.prompt_embeds).collect::<Vec<_>>()),
            pooled_prompt_embeds: Tensor::concat(&rows.iter().map(|r| &r.pooled_prompt_embeds).collect::<Vec<_>>()),
            truncated: Vec::new(),
        })
    }
}
