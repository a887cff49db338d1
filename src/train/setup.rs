//! What a run computes with and does not change: models, prompts, rewards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::learning_rate::LearningRate;
use super::prompts::PromptBank;
use crate::algorithms::{self, Algorithm};
use crate::config::raw::{Prompts, Weights};
use crate::config::resolved::ModelSizes;
use crate::config::reward::{RewardKeys, RewardModel};
use crate::config::{Job, Resolved, TrainConfig};
use crate::data::PromptSet;
use crate::device::{DType, Device};
use crate::io::read;
use crate::models::lora::{Layout, select};
use crate::models::network::Network;
use crate::models::source::{Model, Source};
use crate::models::text::{TextEncoders, describe_truncated};
use crate::models::{autoencoder, identity, mmdit, outline};
use crate::ops::adamw::AdamW;
use crate::ops::fp8;
use crate::rewards::{self, Key, Kind, Options, WeightedSum};
use crate::rollout::Pipeline;
use crate::rollout::sampler::Sampler;
use crate::rollout::schedule::Schedule;
use crate::telemetry::warn;

/// The phase in which reward models are loaded.
pub(super) const LOAD_REWARDS: &str = "load rewards";

/// A run's fixed parts.
pub struct Setup {
    /// The config with its derived sizes.
    pub config: Resolved,
    /// Where everything is.
    pub device: Device,
    /// Network, VAE, schedule.
    pub pipeline: Pipeline,
    /// The network that samples for training, if it is not the one that is trained.
    pub sampling: Option<Box<dyn Network>>,
    /// Prompts and their embeddings.
    pub prompts: PromptBank,
    /// Prompts to train on.
    pub train: PromptSet,
    /// Held-out prompts.
    pub eval: PromptSet,
    /// What is trained on.
    pub rewards: WeightedSum,
    /// The training method.
    pub algorithm: Box<dyn Algorithm>,
    /// How images are sampled.
    pub sampler: Box<dyn Sampler>,
    /// The optimiser's settings.
    pub optimizer: AdamW,
    /// Its learning rate over the run.
    pub learning_rate: LearningRate,
    /// Which of the network's modules are adapted.
    pub layout: Arc<Layout>,
    /// Checksums of what the run learns from, by the key that names it: the same at another path is the same run.
    pub inputs: BTreeMap<String, String>,
}

/// A config checked against its files, before any weight is touched.
#[derive(Clone)]
pub struct Planned {
    /// The config with its derived sizes.
    pub config: Resolved,
    /// Whether the text encoders are on the device only while they encode: slower, and less memory.
    pub encoders_leave: bool,
    model: Model,
    train: PromptSet,
    eval: PromptSet,
}

/// For a plan: names what stands for the models and prompts of `raw` that are not there, and says so in lines.
pub fn stand_in(raw: &mut TrainConfig) -> Vec<String> {
    let mut lines: Vec<Option<String>> = vec![
        outline::stand_in(&mut raw.model, "model", outline::SD35_MEDIUM),
        outline::stand_in(&mut raw.prompts.train, "prompts.train", outline::PROMPTS),
        outline::stand_in(&mut raw.prompts.eval, "prompts.eval", outline::PROMPTS),
    ];
    for (name, reward) in &mut raw.rewards {
        // Mistakes in names are for whoever checks the config.
        let Ok(entry) = rewards::entry(name) else { continue };
        if let Some(beside) = raw.reward_models.remove(name) {
            reward.options.fill(beside.options());
        }
        reward.options.fill_places(entry.keys);
        let paths: Vec<_> = reward.options.paths(entry.keys).map(|(key, path)| (key, path.to_path_buf())).collect();
        for (key, mut path) in paths {
            let full = format!("rewards.{name}.{key}");
            let is_optional = |k: &Key| k.name == key && matches!(k.kind, Kind::Path { optional: true, .. });
            if entry.keys.iter().any(is_optional) {
                if !path.exists() && !outline::is_outline(&path) {
                    lines.push(Some(format!("{full}: there is no {}; planned without", path.display())));
                    reward.options.forget(&[key]);
                }
                continue;
            }
            lines.push(outline::stand_in(&mut path, &full, outline::CLIP_H));
            reward.options.set_path(key, &path);
        }
    }
    lines.into_iter().flatten().collect()
}

/// The prompts at `path`.
fn prompts(path: &Path) -> Result<PromptSet> {
    if path == Path::new(outline::PROMPTS) {
        return Ok(PromptSet::numbered(path, outline::PROMPT_COUNT));
    }
    PromptSet::load(path)
}

/// Checks `raw` against the model's configs and the prompt files. Reads no weights.
///
/// # Errors
/// One line naming the key or file, what was found, and the nearest that works.
pub fn check(mut raw: TrainConfig, job: Job) -> Result<Planned> {
    terms(&raw)?;
    let model = Model::open(&raw.source())?;
    // A snapshot of the hub's cache by its own name: `main` may move on.
    raw.model = model.path().to_path_buf();
    let sizes = mmdit::Config::load(model.component("transformer")?)?.sizes();
    let vae = autoencoder::Config::load(model.component("vae")?)?;
    let schedule = Schedule::load(model.component("scheduler")?)?;
    let train = prompts(&raw.prompts.train).context("key prompts.train")?;
    let eval = prompts(&raw.prompts.eval).context("key prompts.eval")?;
    let sizes_of = ModelSizes {
        downscale: vae.downscale(),
        patch: sizes.patch,
        max_tokens: sizes.most_tokens,
        own_latent: sizes.own_latent,
    };
    raw.check()?;
    let tokens = (sizes_of.resolution(&raw)? / sizes_of.downscale / sizes_of.patch).pow(2);
    for steps in [raw.rollout.num_inference_steps, raw.eval.num_inference_steps] {
        schedule.sigmas(steps, tokens)?;
    }
    let algorithm = algorithms::build(&raw, &schedule, tokens)?;
    algorithms::check_rollout(&*algorithm, raw.rollout.weights)?;
    let each = algorithm.each(raw.rollout.num_images_per_prompt);
    let counts = [train.prompts.len(), eval.prompts.len()];
    Ok(Planned { config: Resolved::new(raw, job, sizes_of, counts, each)?, encoders_leave: false, model, train, eval })
}

/// A config for evaluation alone: `trained`'s settings where there is one, the defaults otherwise.
pub fn evaluation_config(
    model: Source,
    prompts: &Path,
    mut rewards: BTreeMap<String, RewardKeys>,
    trained: Option<&TrainConfig>,
) -> Result<TrainConfig> {
    let paths = |max_sequence_length| Prompts { train: prompts.into(), eval: prompts.into(), max_sequence_length };
    let mut config = match trained {
        Some(trained) => {
            for (name, reward) in &mut rewards {
                if trained.rewards.contains_key(name) {
                    reward.options.fill(said(trained, name)?);
                }
            }
            TrainConfig { reward_models: BTreeMap::new(), rewards, ..trained.clone() }
        }
        None => TrainConfig::minimal(model.model.clone(), paths(Prompts::max_sequence_length()), rewards),
    };
    config.set_source(model);
    config.prompts = paths(config.prompts.max_sequence_length);
    Ok(config)
}

/// What `raw` says about the reward `name` in both places.
///
/// # Errors
/// If both say the same key.
fn said(raw: &TrainConfig, name: &str) -> Result<Options> {
    let mut options = raw.rewards[name].options.clone();
    if let Some(beside) = raw.reward_models.get(name).map(RewardModel::options) {
        if let Some(twice) = beside.names().find(|key| options.names().any(|other| other == *key)) {
            bail!("reward_models.{name}: rewards.{name}.{twice} says it too; remove one of the two");
        }
        options.fill(beside);
    }
    Ok(options)
}

/// The rewards a config names, with everything that is said about each, and its weight.
///
/// # Errors
/// If a reward or one of its options is not as it should be, or a model is given for a reward that is not there.
fn terms(raw: &TrainConfig) -> Result<Vec<(String, Options, f64)>> {
    if let Some(name) = raw.reward_models.keys().find(|name| !raw.rewards.contains_key(*name)) {
        bail!("reward_models.{name}: there is no reward of that name under [rewards]");
    }
    let term = |(name, keys): (&String, &RewardKeys)| {
        Ok((name.clone(), rewards::resolve(name, said(raw, name)?)?, keys.weight))
    };
    raw.rewards.iter().map(term).collect()
}

/// What identifies the inputs of a run.
fn inputs(raw: &TrainConfig, model: &Model, terms: &[(String, Options, f64)]) -> Result<BTreeMap<String, String>> {
    let of_file = |path: &Path| Ok::<_, anyhow::Error>(format!("{:08x}", crc32fast::hash(&read::bytes(path)?)));
    let mut inputs = BTreeMap::from([
        ("model".to_string(), identity::of_model(model)?),
        ("prompts.train".to_string(), of_file(&raw.prompts.train)?),
        ("prompts.eval".to_string(), of_file(&raw.prompts.eval)?),
    ]);
    for (name, options, _) in terms {
        for (key, path) in options.paths(rewards::entry(name)?.keys) {
            inputs.insert(format!("rewards.{name}.{key}"), identity::of_path(path)?);
        }
    }
    Ok(inputs)
}

impl Planned {
    /// Where the model's parts are.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// For a plan: as [`Model::outline_missing`].
    ///
    /// # Errors
    /// As that.
    pub fn outline_missing(&mut self) -> Result<Option<String>> {
        self.model.outline_missing()
    }

    /// Loads the models and rewards to `device`.
    ///
    /// # Errors
    /// If a weight file is missing, damaged or does not fit its config; if a reward cannot judge a prompt.
    pub fn load(self, device: &Device) -> Result<Setup> {
        let raw = &self.config.raw;
        for path in [&raw.prompts.train, &raw.prompts.eval] {
            let fits = device.is_plan() || !outline::is_outline(path);
            ensure!(fits, "{}: there are no prompts, only their number, which is for plans", path.display());
        }
        let is_fp8 = self.config.job == Job::Train && raw.rollout.weights == Weights::Fp8;
        if is_fp8 {
            // What activations are in is known once the weights are; whether the device can is known now.
            fp8::check(device, DType::Bf16).context("key rollout.weights")?;
        }
        device.phase(LOAD_REWARDS);
        let terms = terms(raw)?;
        let is_run = self.config.job == Job::Train && !device.is_plan();
        let inputs = if is_run { inputs(raw, &self.model, &terms)? } else { BTreeMap::new() };
        let rewards = terms.iter().map(|(name, o, weight)| Ok((rewards::build(name, o.clone(), device)?, *weight)));
        let rewards = WeightedSum::new(rewards.collect::<Result<_>>()?)?;
        device.phase("load model");
        let pipeline = Pipeline::load(&self.model, device, raw.train.compute.precision())?;
        let sampling = if is_fp8 { Some(pipeline.network.quantised().context("key rollout.weights")?) } else { None };
        let encoders = TextEncoders::load(&self.model, device)?;
        if !device.is_plan() {
            rewards.check(&self.train)?;
            rewards.check(&self.eval)?;
            let texts = self.train.prompts.iter().chain(&self.eval.prompts).map(|p| p.text.as_str());
            let truncated = encoders.truncated(texts, raw.prompts.max_sequence_length)?;
            describe_truncated(&truncated).iter().for_each(|line| warn(line));
        }
        let modules = pipeline.network.modules();
        let layout = Layout::selected(modules, &select(modules, &raw.lora.targets)?, raw.lora.rank);
        let (o, side) = (&raw.optimizer, self.config.latent);
        let tokens = pipeline.network.sizes().tokens(side, side);
        let algorithm = algorithms::build(raw, &pipeline.schedule, tokens)?;
        let learning_rate = LearningRate::new(o, u64::from(raw.num_epochs) * algorithm.updates_per_epoch() as u64);
        if is_run && let Some(warning) = learning_rate.never_warm() {
            warn(&warning);
        }
        Ok(Setup {
            prompts: PromptBank::new(
                encoders,
                self.model,
                device,
                self.encoders_leave,
                raw.prompts.max_sequence_length,
            ),
            train: self.train,
            eval: self.eval,
            rewards,
            algorithm,
            sampler: raw.rollout.sampler.at(raw.rollout.noise_level),
            optimizer: AdamW { lr: o.lr, beta1: o.beta1, beta2: o.beta2, weight_decay: o.weight_decay, eps: o.eps },
            learning_rate,
            layout: Arc::new(layout),
            inputs,
            device: device.clone(),
            pipeline,
            sampling,
            config: self.config,
        })
    }
}
