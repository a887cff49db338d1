//! The networks, written once against [`crate::ops`]: forward and, where training needs it, backward by hand.

pub mod autoencoder;
pub mod clip;
mod config;
pub mod index;
mod linear;
pub mod lora;
pub mod mmdit;
pub mod network;
pub mod t5;
pub mod text;
pub mod tokenizer;

pub use linear::Linear;
