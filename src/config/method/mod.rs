//! Which training method, and the keys of each: one table per method, named like it.

mod awm;
mod grpo;
mod nft;
mod ram;
mod rsm;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use awm::{AwmKeys, KlForm, LossType, TimeType, Weighting};
pub use grpo::{GrpoKeys, GuardGradBalance, KlDenominator, KlType};
pub use nft::{AdvantageMode, Decay, NftKeys};
pub use ram::{Form, Grid, RamKeys};
pub use rsm::{Profile, ProfileName, Reweight, RsmKeys, RsmLoss, RsmSampler};

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
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Ram, Self::Awm, Self::Nft, Self::FlowGrpo, Self::FlowGrpoFast, Self::Cps, Self::GrpoGuard, Self::Rsm];

    /// Whether it is trained on the steps of its rollouts; else on clean latents, whoever made them.
    pub fn is_trained_on_steps(self) -> bool {
        matches!(self, Self::FlowGrpo | Self::FlowGrpoFast | Self::Cps | Self::GrpoGuard | Self::Rsm)
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
}

impl MethodKeys {
    /// Whether an image is compared with others of its seed, so that a prompt may have one seed alone.
    pub(super) fn compares_within_seeds(&self) -> bool {
        matches!(self, Self::Rsm(keys) if keys.sampler == RsmSampler::Branch)
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
        }
    }
}
