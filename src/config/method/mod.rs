//! Which training method, and the keys of each: one table per method, named like it.

mod awm;
mod grpo;
mod nft;
mod ram;
mod rsm_first_order;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use awm::{AwmKeys, KlForm, LossType, TimeType, Weighting};
pub use grpo::{GrpoKeys, GuardGradBalance, KlDenominator, KlType};
pub use nft::{AdvantageMode, Decay, NftKeys};
pub use ram::{Form, Grid, RamKeys};
pub use rsm_first_order::{RsmFirstOrderKeys, Slope};

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
    /// First-order residual score matching.
    RsmFirstOrder,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ram,
        Self::Awm,
        Self::Nft,
        Self::FlowGrpo,
        Self::FlowGrpoFast,
        Self::Cps,
        Self::GrpoGuard,
        Self::RsmFirstOrder,
    ];

    /// Whether it is trained on the steps of its rollouts; else on clean latents, whoever made them.
    pub fn is_trained_on_steps(self) -> bool {
        matches!(self, Self::FlowGrpo | Self::FlowGrpoFast | Self::Cps | Self::GrpoGuard)
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
            Self::RsmFirstOrder => "rsm_first_order",
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
    /// First-order residual score matching.
    RsmFirstOrder(RsmFirstOrderKeys),
}

impl MethodKeys {
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
            Self::RsmFirstOrder(keys) => keys.check(),
        }
    }
}
