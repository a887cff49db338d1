//! CLIP (Radford et al. 2021) in the layout of transformers: the text encoders of SD3.5, and the whole model
//! that rewards compare images and prompts with.

mod config;
mod text;
mod tower;
mod vision;

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

use crate::device::{DType, Device, Tensor};
use crate::io::{Loader, TensorFile};
use crate::models::{Linear, outline};
use crate::ops::copy;

pub use config::{ClipConfig, TextConfig, VisionConfig};
pub use text::{ClipText, ClipTextOutput};

/// Buffers that old files hold and nobody reads.
const IGNORED: &[&str] = &["embeddings.position_ids"];

/// Text and vision tower with projections into one space (`CLIPModel`).
pub struct Clip {
    config: ClipConfig,
    text: text::TextTower,
    text_projection: Linear,
    vision: vision::VisionTower,
    visual_projection: Linear,
    logit_scale: Tensor,
}

impl Clip {
    /// The model in `folder`: `config.json` and `model.safetensors`; of an outline, its shapes.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing or not as expected.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let (config, file) = if outline::is_outline(folder) {
            let settings = serde_json::from_value(outline::clip_h())?;
            (ClipConfig::of(folder, settings)?, TensorFile::outline(folder, outline::WITH))
        } else {
            let config = ClipConfig::read(&folder.join("config.json"))?;
            (config, TensorFile::open_component(folder, "model", None)?)
        };
        let loader = Loader::new(&file, IGNORED, device);
        let root = loader.root();
        let joint = config.projection_dim;
        let clip = Self {
            text: text::TextTower::load(&root.sub("text_model"), &config.text),
            text_projection: Linear::load(&root.sub("text_projection"), config.text.hidden_size, joint, false),
            vision: vision::VisionTower::load(&root.sub("vision_model"), &config.vision),
            visual_projection: Linear::load(&root.sub("visual_projection"), config.vision.hidden_size, joint, false),
            logit_scale: root.tensor("logit_scale", &[]),
            config,
        };
        loader.finish()?;
        Ok(clip)
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.logit_scale.device()
    }

    /// What the model was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Images to the joint space, not normalised. `pixels` `[b, 3, s, s]`, preprocessed; returns `[b, projection]`.
    pub fn image_embeds(&self, pixels: &Tensor) -> Tensor {
        let embeds = pixels.device().region(|| self.visual_projection.forward(&self.vision.forward(pixels)));
        copy::cast(&embeds, DType::F32)
    }

    /// Token ids to the joint space, not normalised; returns `[b, projection]`.
    pub fn text_embeds(&self, ids: &[Vec<u32>]) -> Tensor {
        let hidden = self.text.forward(ids);
        copy::cast(&self.text_projection.forward(&self.text.pool(&hidden.last, ids)), DType::F32)
    }

    /// The logarithm of the factor on cosines, as stored.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale.to_host()[0]
    }
}
