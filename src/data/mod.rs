//! What a run trains on: prompts, and which of them each epoch draws.

pub mod sampler;
