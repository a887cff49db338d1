//! The vectors that time and text modulate a stream with, by name.

use super::LoraScope;
use crate::device::Tensor;
use crate::models::lora::{Adapters, LoraLinear};
use crate::ops::adaln::Chunk;
use crate::ops::linear::Then;

/// Which vectors a stream has, in the order of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those of the attention and of the MLP (`AdaLayerNormZero`).
    Full,
    /// And those of the second attention (`SD35AdaLayerNormZeroX`).
    Dual,
    /// Scale and shift of the attention's norm alone (`AdaLayerNormContinuous`): the text tokens of the last block, which
    /// nothing reads afterwards.
    NormOnly,
}

impl Kind {
    fn vectors(self) -> usize {
        match self {
            Self::Full => 6,
            Self::Dual => 9,
            Self::NormOnly => 2,
        }
    }
}

/// What one sub-layer is modulated with.
#[derive(Clone, Copy)]
pub(super) struct Modulated<'a> {
    pub shift: Chunk<'a>,
    pub scale: Chunk<'a>,
    /// Absent where nothing is added to the residual stream.
    pub gate: Option<Chunk<'a>>,
}

/// The layer that makes a stream's modulation of the embedding.
#[derive(Clone)]
pub(super) struct Modulator {
    layer: LoraLinear,
    kind: Kind,
}

impl Modulator {
    pub(super) fn load(scope: &LoraScope, name: &str, d: usize, kind: Kind) -> Self {
        Self { layer: scope.outer(name, d, kind.vectors() * d), kind }
    }

    /// `embedding` `[b, d]`.
    pub(super) fn forward(&self, embedding: &Tensor, adapters: &Adapters) -> Modulation {
        Modulation { vectors: self.layer.forward(embedding, adapters, Then::Nothing), kind: self.kind }
    }
}

/// A stream's modulation for a batch.
#[derive(Clone)]
pub(super) struct Modulation {
    /// `[b, vectors·d]`.
    pub vectors: Tensor,
    kind: Kind,
}

impl Modulation {
    fn chunk(&self, index: usize) -> Chunk<'_> {
        Chunk { modulation: &self.vectors, index }
    }

    fn three(&self, first: usize) -> Modulated<'_> {
        Modulated { shift: self.chunk(first), scale: self.chunk(first + 1), gate: Some(self.chunk(first + 2)) }
    }

    /// Of the joint attention.
    pub(super) fn attention(&self) -> Modulated<'_> {
        match self.kind {
            Kind::NormOnly => Modulated { scale: self.chunk(0), shift: self.chunk(1), gate: None },
            Kind::Full | Kind::Dual => self.three(0),
        }
    }

    /// Of the MLP.
    pub(super) fn mlp(&self) -> Modulated<'_> {
        self.three(3)
    }

    /// Of the second attention.
    pub(super) fn dual(&self) -> Modulated<'_> {
        self.three(6)
    }

    /// The same for the leading `rows` alone.
    pub(super) fn keep(&self, rows: usize) -> Self {
        Self { vectors: super::keep(&self.vectors, rows), kind: self.kind }
    }
}
