//! What a run trains on: prompts, and which of them each epoch draws.

pub mod prompts;
pub mod sampler;

pub use prompts::{Clause, Color, Exclusion, Prompt, PromptSet, Relation};
