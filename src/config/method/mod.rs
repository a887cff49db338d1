//! Which training method, and the keys of each: one table per method, named like it.

mod awm;
mod crd;
mod grpo;
mod nft;
mod preference;
mod ram;
mod rsm;
mod rsm_first_order;
mod sft;
mod times;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

pub use awm::{AwmKeys, KlForm, LossType, Weighting};
pub use crd::{CrdKeys, CrdLoss, Ramp};
pub use grpo::{GrpoKeys, GuardGradBalance, KlDenominator, KlType, Std, WindowPlace};
pub use nft::{AdvantageMode, Decay, NftKeys};
pub use preference::{DgpoKeys, DpoKeys, GroupReference};
pub use ram::{Form, Grid, RamKeys};
pub use rsm::{Profile, ProfileName, Reweight, RsmKeys, RsmLoss, RsmSampler};
pub use rsm_first_order::{GradientAt, RsmFirstOrderKeys, Slope};
pub use sft::SftKeys;
pub use times::{TimeType, Times};

/// The training methods there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Reinforce Adjoint Matching.
    Ram,
    /// Advantage-Weighted Matching.
    Awm,
    /// DiffusionNFT.
    Nft,
    /// Flow-GRPO.
    FlowGrpo,
    /// Flow-GRPO-Fast and MixGRPO: a window of the steps.
    FlowGrpoFast,
    /// Flow-GRPO with coefficients-preserving sampling.
    Cps,
    /// GRPO-Guard: Flow-GRPO with normalised ratios.
    GrpoGuard,
    /// Reward Score Matching, zeroth-order.
    Rsm,
    /// First-order Reward Score Matching.
    RsmFirstOrder,
    /// Supervised fine-tuning on the best image of each prompt.
    Sft,
    /// The same, on images of a policy that follows.
    OnlineSft,
    /// Reward-weighted regression.
    Rwr,
    /// Diffusion-DPO on the best and the worst image of each prompt.
    Dpo,
    /// The same, with a reference that follows and samples.
    OnlineDpo,
    /// Direct Group Preference Optimisation.
    Dgpo,
    /// Centred Reward Distillation.
    Crd,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Ram,
        Self::Awm,
        Self::Nft,
        Self::FlowGrpo,
        Self::FlowGrpoFast,
        Self::Cps,
        Self::GrpoGuard,
        Self::Rsm,
        Self::RsmFirstOrder,
        Self::Sft,
        Self::OnlineSft,
        Self::Rwr,
        Self::Dpo,
        Self::OnlineDpo,
        Self::Dgpo,
        Self::Crd,
    ];

    /// Whether it is trained on the steps of its rollouts; else on clean latents, whoever made them.
    pub fn is_trained_on_steps(self) -> bool {
        matches!(self, Self::FlowGrpo | Self::FlowGrpoFast | Self::Cps | Self::GrpoGuard | Self::Rsm)
    }

    /// Whether it follows the gradient of the rewards, and so needs one of each; images are compared with no others.
    pub fn follows_gradients(self) -> bool {
        self == Self::RsmFirstOrder
    }

    /// Its name, also that of its table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Awm => "awm",
            Self::Nft => "nft",
            Self::FlowGrpo => "flow_grpo",
            Self::FlowGrpoFast => "flow_grpo_fast",
            Self::Cps => "cps",
            Self::GrpoGuard => "grpo_guard",
            Self::Rsm => "rsm",
            Self::RsmFirstOrder => "rsm_first_order",
            Self::Sft => "sft",
            Self::OnlineSft => "online_sft",
            Self::Rwr => "rwr",
            Self::Dpo => "dpo",
            Self::OnlineDpo => "online_dpo",
            Self::Dgpo => "dgpo",
            Self::Crd => "crd",
        }
    }
}

/// A training method and its settings.
#[derive(Clone, Debug)]
pub enum MethodKeys {
    /// Reinforce Adjoint Matching.
    Ram(RamKeys),
    /// Advantage-Weighted Matching.
    Awm(AwmKeys),
    /// DiffusionNFT.
    Nft(NftKeys),
    /// Flow-GRPO and its variants.
    Grpo(GrpoKeys),
    /// Reward Score Matching.
    Rsm(RsmKeys),
    /// First-order Reward Score Matching.
    RsmFirstOrder(RsmFirstOrderKeys),
    /// Regression to the images that rewards choose.
    Sft(SftKeys),
    /// Diffusion-DPO.
    Dpo(DpoKeys),
    /// Direct Group Preference Optimisation.
    Dgpo(DgpoKeys),
    /// Centred Reward Distillation.
    Crd(CrdKeys),
}

impl MethodKeys {
    /// Whether an image is compared with others of its seed, so that a prompt may have one seed alone.
    pub(super) fn compares_within_seeds(&self) -> bool {
        matches!(self, Self::Rsm(keys) if keys.sampler == RsmSampler::Branch)
    }

    /// The published settings of `method`.
    ///
    /// # Errors
    /// If there are none that suit every reward.
    pub(super) fn published(method: Method) -> Result<Self> {
        Ok(match method {
            Method::Ram => bail!("algorithm is 'ram', but there is no table [ram] with its settings"),
            Method::Awm => Self::Awm(AwmKeys::default()),
            Method::Nft => Self::Nft(NftKeys::default()),
            Method::Rsm => Self::Rsm(RsmKeys::default()),
            Method::FlowGrpo | Method::FlowGrpoFast | Method::Cps | Method::GrpoGuard => {
                Self::Grpo(GrpoKeys::default())
            }
            Method::RsmFirstOrder => Self::RsmFirstOrder(RsmFirstOrderKeys::default()),
            Method::Sft | Method::OnlineSft | Method::Rwr => Self::Sft(SftKeys::default()),
            Method::Dpo | Method::OnlineDpo => Self::Dpo(DpoKeys::default()),
            Method::Dgpo => Self::Dgpo(DgpoKeys::default()),
            Method::Crd => Self::Crd(CrdKeys::default()),
        })
    }

    /// Checks what does not depend on anything else.
    ///
    /// # Errors
    /// Names the key, what was found, and what is expected.
    pub(super) fn check(&self, method: Method) -> Result<()> {
        match self {
            Self::Grpo(keys) => keys.check(method),
            Self::Ram(keys) => keys.check(),
            Self::Awm(keys) => keys.check(),
            Self::Nft(keys) => keys.check(),
            Self::Rsm(keys) => keys.check(),
            Self::RsmFirstOrder(keys) => keys.check(),
            Self::Sft(keys) => keys.check(method),
            Self::Dpo(keys) => keys.check(method),
            Self::Dgpo(keys) => keys.check(),
            Self::Crd(keys) => keys.check(),
        }
    }
}
