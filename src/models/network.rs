//! What sampling and training know of the network that predicts velocities.

use std::any::Any;
use std::ops::Range;

use anyhow::Result;

use super::lora::{Adapters, Module, Trained};
use crate::device::{DType, Device, Tensor};
use crate::io::check_multiple;

/// What the forward keeps for the backward, and what is computed again; the results are the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Keep everything.
    #[default]
    None,
    /// Keep only the input of each block: least memory, one more forward.
    Block,
    /// Keep projections and attention results; norms and MLPs are computed again.
    Selective,
}

/// What the velocity is conditioned on.
#[derive(Clone, Copy)]
pub struct Condition<'a> {
    /// The network's time input per sample, `[b]`.
    pub timestep: &'a [f32],
    /// `[b, l, text width]`, in any floating-point type; so is the pooled one.
    pub prompt_embeds: &'a Tensor,
    /// `[b, pooled width]`.
    pub pooled_prompt_embeds: &'a Tensor,
}

/// The latents and texts a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Latent channels, also of the velocity.
    pub channels: usize,
    /// Latent pixels per token and axis.
    pub patch: usize,
    /// Most tokens per axis.
    pub most_tokens: usize,
    /// Latent height and width the network was made for.
    pub own_latent: usize,
    /// Width of the text embeddings.
    pub text: usize,
    /// Width of the pooled text embeddings.
    pub pooled: usize,
}

impl<'a> Condition<'a> {
    /// That of some of the samples: their times, and views of the tensors, prompt embeddings first.
    pub fn rows(&self, rows: Range<usize>) -> (&'a [f32], Tensor, Tensor) {
        let Self { timestep, prompt_embeds, pooled_prompt_embeds } = self;
        (&timestep[rows.clone()], prompt_embeds.slice(rows.clone()), pooled_prompt_embeds.slice(rows))
    }
}

impl Sizes {
    /// Tokens of a latent of `height` by `width`.
    pub fn tokens(&self, height: usize, width: usize) -> usize {
        (height / self.patch) * (width / self.patch)
    }

    /// Checks that a latent of `height` by `width` can be cut into tokens that have positions.
    ///
    /// # Errors
    /// Says which side does not fit and the nearest that does.
    pub fn check_latent(&self, height: usize, width: usize) -> Result<()> {
        [("latent height", height), ("latent width", width)]
            .iter()
            .try_for_each(|(what, side)| check_multiple(what, *side, self.patch, self.most_tokens))
    }
}

/// What a forward keeps for its backward: the network's own business.
pub struct Saved(Box<dyn Any + Send>);

impl Saved {
    /// Wraps what a network keeps.
    pub fn new(kept: impl Any + Send) -> Self {
        Self(Box::new(kept))
    }

    /// What [`Saved::new`] was given.
    pub fn take<T: Any>(self) -> T {
        *self.0.downcast().unwrap_or_else(|_| panic!("saved by another network"))
    }
}

/// A network that predicts the velocity of latents, with its frozen weights; forward, and backward by hand to the factors
/// of an adapter and to the latent.
pub trait Network: Send + Sync {
    /// Where its weights are.
    fn device(&self) -> &Device;

    /// The latents and texts it takes.
    fn sizes(&self) -> Sizes;

    /// All layers that an adapter can be put on.
    fn modules(&self) -> &[Module];

    /// The type that its matrices are multiplied in; of blocks, what they are stored in.
    fn multiplies_in(&self) -> DType;

    /// The same network with the weights of its blocks in fp8, for forwards that all go through one adapter and keep nothing;
    /// the rest is shared.
    ///
    /// # Errors
    /// If the device does not multiply fp8.
    fn quantised(&self) -> Result<Box<dyn Network>>;

    /// The velocity of `x` `[b, channels, h, w]` under `condition`, of the same shape, each row through its adapter.
    fn forward(&self, x: &Tensor, condition: Condition, adapters: &Adapters) -> Tensor;

    /// As [`Network::forward`], keeping what [`Network::backward`] needs of the leading rows that go through the trained
    /// policy.
    fn forward_saved(
        &self,
        x: &Tensor,
        condition: Condition,
        adapters: &Adapters,
        keep: Checkpointing,
    ) -> (Tensor, Saved);

    /// From the gradient to the velocity of the saved rows, `[rows, channels, h, w]`, to those of the trained factors,
    /// added to what is there, and, if `want_dx`, the gradient to the latent.
    fn backward(&self, dvelocity: &Tensor, saved: Saved, trained: &mut Trained, want_dx: bool) -> Option<Tensor>;
}
