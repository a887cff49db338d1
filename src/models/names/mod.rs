//! What other programs call the tensors that diffusers and transformers have names for.

pub(crate) mod autoencoder;
pub(crate) mod blip;
pub(crate) mod clip;
pub(crate) mod mask2former;
pub(crate) mod owl;
pub(crate) mod t5;
pub(crate) mod transformer;
