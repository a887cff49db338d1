//! The networks, written once against [`crate::ops`]: forward and, where training needs it, backward by hand.

pub mod autoencoder;
pub mod blip;
pub mod clip;
mod config;
pub mod identity;
pub mod index;
mod linear;
pub mod lora;
pub mod mask2former;
pub mod mmdit;
mod names;
pub mod network;
mod norm;
pub mod outline;
pub mod owl;
mod patches;
pub mod ppocr;
mod sizes;
pub mod source;
pub mod swin;
pub mod t5;
pub mod text;
pub mod tokenizer;

use anyhow::Result;

use self::network::Network;
use self::source::Component;
use crate::device::{Device, Precision};

pub use linear::Linear;
pub use norm::LayerNorm;

/// Maps the network `component` (`transformer/` of a pipeline), whose matrices are multiplied in `precision`.
///
/// # Errors
/// If a file is missing or damaged, or a tensor's name, shape, type or content is not what the config asks for.
pub fn load_network(
    component: impl Into<Component>,
    device: &Device,
    precision: impl Into<Precision>,
) -> Result<Box<dyn Network>> {
    Ok(Box::new(mmdit::Mmdit::load(component, device, precision.into())?))
}
