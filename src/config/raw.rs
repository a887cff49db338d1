//! Every key of a training config but those of [methods](super::method), [rewards](super::reward) and the
//! [optimiser](super::optimizer). Counts are totals across processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::method::{
    AwmKeys, CrdKeys, DgpoKeys, DpoKeys, GrpoKeys, Method, MethodKeys, NftKeys, RamKeys, RsmFirstOrderKeys, RsmKeys,
    SftKeys,
};
use super::optimizer::Optimizer;
use super::reward::{RewardKeys, RewardModel};
use crate::device::{DType, Precision, Wide};
use crate::models::network::Checkpointing;
use crate::models::source::{Parts, Source};
use crate::rollout::sampler::Kind;

/// A training run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The training method.
    pub algorithm: Method,
    /// The model: a folder in the layout of diffusers, or a checkpoint of one file.
    pub model: PathBuf,
    /// Which variant of weights to take where the model's folder has it, such as `fp16`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Files in the place of parts of the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parts: Parts,
    /// Everything random in the run follows from it.
    #[serde(default = "seed")]
    pub seed: u64,
    /// Rollout, reward and update, this many times.
    pub num_epochs: u32,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// How images are sampled for training.
    #[serde(default)]
    pub rollout: Rollout,
    /// The rewards, as `name = weight` or as a table `[rewards.name]`; the weighted sum is trained on. A reward of weight 0
    /// is only logged.
    pub rewards: BTreeMap<String, RewardKeys>,
    /// How several rewards become one: `sum`, weighted; or `gdpo`, for which each is first centred and scaled in the group of a
    /// prompt's images (arXiv 2601.05242), so that it counts by its weight and not by its scale. Evaluations report the sum.
    #[serde(default, skip_serializing_if = "Aggregation::is_default")]
    pub reward_aggregation: Aggregation,
    /// Models of rewards by the reward's name, or tables of what else they need: another place for `rewards.name.model` and so on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reward_models: BTreeMap<String, RewardModel>,
    /// Reinforce Adjoint Matching, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<RamKeys>,
    /// Advantage-Weighted Matching, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awm: Option<AwmKeys>,
    /// DiffusionNFT, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nft: Option<NftKeys>,
    /// Flow-GRPO, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_grpo: Option<GrpoKeys>,
    /// Flow-GRPO-Fast, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_grpo_fast: Option<GrpoKeys>,
    /// CPS, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cps: Option<GrpoKeys>,
    /// GRPO-Guard, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpo_guard: Option<GrpoKeys>,
    /// Reward Score Matching, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsm: Option<RsmKeys>,
    /// First-order Reward Score Matching, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rsm_first_order: Option<RsmFirstOrderKeys>,
    /// Supervised fine-tuning, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sft: Option<SftKeys>,
    /// OnlineSFT, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online_sft: Option<SftKeys>,
    /// Reward-weighted regression, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rwr: Option<SftKeys>,
    /// Diffusion-DPO, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<DpoKeys>,
    /// OnlineDPO, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online_dpo: Option<DpoKeys>,
    /// Direct Group Preference Optimisation, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dgpo: Option<DgpoKeys>,
    /// Centred Reward Distillation, if that is the algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crd: Option<CrdKeys>,
    /// How the update is computed.
    #[serde(default)]
    pub train: Train,
    /// The trained adapter.
    #[serde(default)]
    pub lora: Lora,
    /// AdamW.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Moving average of the adapter, used for evaluation and export.
    #[serde(default)]
    pub ema: Ema,
    /// Evaluation on held-out prompts.
    #[serde(default)]
    pub eval: Eval,
    /// What ends the run before its last epoch.
    #[serde(default)]
    pub stop: Stop,
    /// Saved state.
    #[serde(default)]
    pub checkpoint: CheckpointKeys,
}

impl TrainConfig {
    /// A config of defaults.
    pub fn minimal(model: PathBuf, prompts: Prompts, rewards: BTreeMap<String, RewardKeys>) -> Self {
        Self {
            algorithm: Method::Ram,
            model,
            variant: None,
            parts: Parts::default(),
            seed: seed(),
            num_epochs: 1,
            prompts,
            rollout: Rollout::default(),
            rewards,
            reward_aggregation: Aggregation::default(),
            reward_models: BTreeMap::new(),
            ram: Some(RamKeys::published(1.0)),
            awm: None,
            nft: None,
            flow_grpo: None,
            flow_grpo_fast: None,
            cps: None,
            grpo_guard: None,
            rsm: None,
            rsm_first_order: None,
            sft: None,
            online_sft: None,
            rwr: None,
            dpo: None,
            online_dpo: None,
            dgpo: None,
            crd: None,
            train: Train::default(),
            lora: Lora::default(),
            optimizer: Optimizer::default(),
            ema: Ema::default(),
            eval: Eval::default(),
            stop: Stop::default(),
            checkpoint: CheckpointKeys::default(),
        }
    }

    /// What the model is made of.
    pub fn source(&self) -> Source {
        Source { model: self.model.clone(), variant: self.variant.clone(), parts: self.parts.clone() }
    }

    /// Names what the model is made of.
    pub fn set_source(&mut self, source: Source) {
        Source { model: self.model, variant: self.variant, parts: self.parts } = source;
    }

    /// The training method with its settings: the table that `algorithm` selects.
    ///
    /// # Errors
    /// If there is no such table.
    pub fn method(&self) -> Result<MethodKeys> {
        let name = self.algorithm.name();
        let is_of_another = |method: &Method| *method != self.algorithm && self.table(*method).is_some();
        if let Some(other) = Method::ALL.into_iter().find(is_of_another) {
            bail!("algorithm is '{name}', but there is a table [{}] of another", other.name());
        }
        self.table(self.algorithm).map_or_else(|| MethodKeys::published(self.algorithm), Ok)
    }

    /// The table of `method`, if there is one.
    fn table(&self, method: Method) -> Option<MethodKeys> {
        match method {
            Method::Ram => self.ram.clone().map(MethodKeys::Ram),
            Method::Awm => self.awm.clone().map(MethodKeys::Awm),
            Method::Nft => self.nft.clone().map(MethodKeys::Nft),
            Method::Rsm => self.rsm.clone().map(MethodKeys::Rsm),
            Method::FlowGrpo => self.flow_grpo.clone().map(MethodKeys::Grpo),
            Method::FlowGrpoFast => self.flow_grpo_fast.clone().map(MethodKeys::Grpo),
            Method::Cps => self.cps.clone().map(MethodKeys::Grpo),
            Method::GrpoGuard => self.grpo_guard.clone().map(MethodKeys::Grpo),
            Method::RsmFirstOrder => self.rsm_first_order.clone().map(MethodKeys::RsmFirstOrder),
            Method::Sft => self.sft.clone().map(MethodKeys::Sft),
            Method::OnlineSft => self.online_sft.clone().map(MethodKeys::Sft),
            Method::Rwr => self.rwr.clone().map(MethodKeys::Sft),
            Method::Dpo => self.dpo.clone().map(MethodKeys::Dpo),
            Method::OnlineDpo => self.online_dpo.clone().map(MethodKeys::Dpo),
            Method::Dgpo => self.dgpo.clone().map(MethodKeys::Dgpo),
            Method::Crd => self.crd.clone().map(MethodKeys::Crd),
        }
    }
}

/// How several rewards become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// The weighted sum.
    #[default]
    Sum,
    /// The weighted sum of rewards that are normalised in each group.
    Gdpo,
}

impl Aggregation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_default(parts: &Parts) -> bool {
    *parts == Parts::default()
}

fn seed() -> u64 {
    42
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// Prompts to train on: `.txt`, one a line, or `.jsonl` with GenEval's field names.
    pub train: PathBuf,
    /// Held-out prompts for evaluation.
    pub eval: PathBuf,
    /// T5 tokens per prompt; longer prompts are cut.
    #[serde(default = "Prompts::max_sequence_length")]
    pub max_sequence_length: usize,
}

impl Prompts {
    pub(crate) fn max_sequence_length() -> usize {
        128
    }
}

/// How images are sampled for training.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Different prompts per epoch.
    pub num_prompts_per_epoch: usize,
    /// Images of each prompt; their mean reward is what an image is compared with. Where images are forks (`rsm`), seeds of each
    /// prompt: an image is compared with the other forks of its seed and step.
    pub num_images_per_prompt: usize,
    /// Steps.
    pub num_inference_steps: usize,
    /// How steps are taken: `euler`, `flow`, `cps`, `dance`, `ddim`, `dpm2` or `sa`. Evaluations take Euler steps.
    #[serde(alias = "sde_type")]
    pub sampler: Kind,
    /// The sampler's η: how much noise it adds.
    pub noise_level: f64,
    /// Classifier-free guidance; 1 turns it off and halves the work.
    pub guidance_scale: f32,
    /// Height and width in pixels; 0 takes the model's own.
    pub resolution: usize,
    /// Images that are sampled together; changes speed and memory, not results.
    pub batch_size: usize,
    /// What the transformer multiplies when it samples for training: `stored`, what it trains with, or `fp8`, for which the
    /// weights of its blocks and what goes into them are rounded to e4m3, a scale for each row. Only for methods to which images
    /// are mere data, on the CPU or a GPU of compute capability 9.0 with `train.compute = "bf16"`. Evaluations are not affected.
    pub weights: Weights,
}

/// What a transformer multiplies when it samples for training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// What it trains with.
    #[default]
    Stored,
    /// e4m3, a scale for each row of weights and of activations.
    Fp8,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            num_prompts_per_epoch: 48,
            num_images_per_prompt: 24,
            num_inference_steps: 20,
            sampler: Kind::default(),
            noise_level: 0.0,
            guidance_scale: 2.0,
            resolution: 0,
            batch_size: 16,
            weights: Weights::Stored,
        }
    }
}

/// How the update is computed.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Training points that go through the model together; changes speed and memory, and results by rounding only.
    pub batch_size: usize,
    /// What the forward keeps: `none` (everything), `selective`, `block`. Changes memory and speed, not results.
    pub activation_checkpointing: Checkpointing,
    /// What the transformer's matrices are multiplied in: `stored`, the type of its weights (bf16 for SD3.5 as published, which
    /// `bf16` is for any other); `bf16` or `f16`, to which those of another type are rounded when they are loaded; `f32`, to which
    /// they are widened where they are used; `tf32`, the same, rounded to 10 bits of mantissa by the tensor cores of a GPU. Sums
    /// are in f32. On a GPU activations are of the same type, on the CPU always in f32. The loss is scaled where it is `f16`.
    /// The VAE's are multiplied in the same, but with `f16` as they are stored, and with `tf32` in `f32`.
    pub compute: Compute,
}

/// What a network's matrices are multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// The type its weights are stored in.
    #[default]
    Stored,
    /// Half precision of IEEE; the loss is scaled.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
    /// Single precision, rounded to TF32 in products on tensor cores.
    Tf32,
}

impl Compute {
    /// The same as what loads a network takes it.
    pub fn precision(self) -> Precision {
        match self {
            Self::Stored => Precision::Stored,
            Self::F16 => Precision::Half(DType::F16),
            Self::Bf16 => Precision::Half(DType::Bf16),
            Self::F32 => Precision::Wide(Wide::F32),
            Self::Tf32 => Precision::Wide(Wide::Tf32),
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self { batch_size: 16, activation_checkpointing: Checkpointing::None, compute: Compute::Stored }
    }
}

/// The trained adapter.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
    /// The adapter's product is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Adapted layers, by the end of their name.
    pub targets: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        let targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"];
        Self { rank: 32, alpha: 64.0, targets: targets.map(|t| format!("attn.{t}")).to_vec() }
    }
}

/// Moving average of the adapter.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ema {
    /// Decay, after a warm-up of `(1 + n)/(10 + n)`.
    pub decay: f32,
    /// Applied every this many updates.
    pub interval: u32,
}

impl Default for Ema {
    fn default() -> Self {
        Self { decay: 0.9, interval: 1 }
    }
}

/// Evaluation on held-out prompts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Every this many epochs, and before the first and after the last; 0 only then.
    pub every: u32,
    /// Prompts used, from the first; 0 means all.
    pub num_prompts: usize,
    /// Images per prompt.
    pub num_images_per_prompt: usize,
    /// Euler steps.
    pub num_inference_steps: usize,
    /// Classifier-free guidance.
    pub guidance_scale: f32,
    /// Images in the sample grid.
    pub grid: usize,
}

impl Default for Eval {
    fn default() -> Self {
        Self {
            every: 20,
            num_prompts: 0,
            num_images_per_prompt: 1,
            num_inference_steps: 40,
            guidance_scale: 4.5,
            grid: 16,
        }
    }
}

/// What ends a run before its last epoch, with its last evaluation made and everything saved. The same command again ends
/// at once; a run goes on with other numbers here.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Evaluations in a row without a new best mean held-out reward; 0: as many as there are.
    pub patience: u32,
    /// No epoch begins after the run has trained and evaluated for this many seconds, those before it was resumed included
    /// and loading not; 0: no limit.
    pub max_seconds: u32,
    /// Largest `‖v‖` over that of the base's velocity at a point of the epoch's rollout; 0: no limit.
    pub max_velocity_growth: f64,
    /// Largest mean square distance between the two; 0: no limit.
    pub max_velocity_distance: f64,
    /// Largest share of prompts whose images all have the same reward; 0: no limit.
    pub max_flat_groups: f64,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointKeys {
    /// Every this many epochs, and after the last; 0 only then.
    pub every: u32,
    /// How many are kept.
    pub keep: usize,
}

impl Default for CheckpointKeys {
    fn default() -> Self {
        Self { every: 10, keep: 3 }
    }
}
