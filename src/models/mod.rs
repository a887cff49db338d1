//! The networks, written once against [`crate::ops`]: forward and, where training needs it, backward by hand.

pub mod autoencoder;
mod linear;
pub mod lora;
pub mod mmdit;
pub mod tokenizer;

pub use linear::Linear;
