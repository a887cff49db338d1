//! What surrounds the blocks: latents to tokens and back, positions, time and pooled text.

use super::positions::Positions;
use super::{Config, LoraScope};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::Linear;
use crate::models::lora::{Adapters, LoraLinear};
use crate::ops;
use crate::ops::activation::Activation;
use crate::ops::linear::{InputGrad, Then};
use crate::ops::patchify::{self, Order, Patches};

/// Width of the sinusoidal embedding of time.
const TIME_CHANNELS: usize = 256;

/// Latents to tokens with their positions (diffusers' `PatchEmbed` with a cropped table).
#[derive(Clone)]
pub(super) struct PatchEmbed {
    projection: Linear,
    positions: Positions,
}

impl PatchEmbed {
    pub(super) fn load(scope: &Scope, config: &Config) -> Self {
        let (d, p) = (config.hidden(), config.patch_size);
        let (projection, c) = (scope.sub("proj"), config.in_channels);
        Self {
            // A convolution whose stride is its size is a linear layer on patches.
            projection: Linear {
                weight: projection.tensor("weight", &[d, c, p, p]).reshape(&[d, c * p * p]).multiplied(scope.wide()),
                bias: Some(projection.tensor("bias", &[d])),
                fp8: None,
            },
            positions: Positions::load(scope, config),
        }
    }

    pub(super) fn forward(&self, latent: &Tensor, patches: &Patches) -> Tensor {
        let mut x = self.projection.forward(&patchify::forward(latent, patches, Order::ChannelFirst));
        self.positions.add(&mut x, patches.grid);
        x
    }

    /// The gradient to the latent.
    pub(super) fn backward(&self, dx: &Tensor, patches: &Patches) -> Tensor {
        let mut d = dx.scratch_like(&[dx.dim(0), patches.tokens(), patches.width()]);
        ops::linear::backward(dx, &self.projection.weight, None, None, None, InputGrad::Overwrite(&mut d));
        patchify::inverse(&d, patches, Order::ChannelFirst)
    }
}

/// Time and pooled text to the vector that modulates every block.
#[derive(Clone)]
pub(super) struct TimeTextEmbed {
    time: [LoraLinear; 2],
    text: [LoraLinear; 2],
}

impl TimeTextEmbed {
    pub(super) fn load(scope: &LoraScope, config: &Config) -> Self {
        let d = config.hidden();
        let pair = |name: &str, inputs| {
            let scope = scope.sub(name);
            [scope.outer("linear_1", inputs, d), scope.outer("linear_2", d, d)]
        };
        Self {
            time: pair("timestep_embedder", TIME_CHANNELS),
            text: pair("text_embedder", config.pooled_projection_dim),
        }
    }

    /// `timestep` `[b]` (1000·sigma) and `pooled` `[b, pooled]` to `silu(embedding)` `[b, hidden]`: every user of the
    /// embedding applies that first.
    pub(super) fn forward(&self, timestep: &[f32], pooled: &Tensor, adapters: &Adapters) -> Tensor {
        let times = ops::timestep::forward(&pooled.device(), timestep, TIME_CHANNELS);
        let times = ops::copy::cast(&times, pooled.dtype());
        let inner = |first: &LoraLinear, x: &Tensor| first.forward(x, adapters, Then::Activate(Activation::Silu));
        let time = self.time[1].forward(&inner(&self.time[0], &times), adapters, Then::Nothing);
        let mut out = self.text[1].forward(&inner(&self.text[0], pooled), adapters, Then::Add(&time));
        ops::activation::forward(&mut out, Activation::Silu);
        out
    }
}
