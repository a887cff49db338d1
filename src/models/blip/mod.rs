//! BLIP (Li et al. 2022) as ImageReward has it: a vision transformer, and a BERT that reads a text while it looks at the picture.

mod sizes;
mod text;
mod vision;

use anyhow::Result;

use crate::device::{DType, Device, Precision, Tensor};
use crate::io::{Loader, TensorFile};
use crate::models::names;
use crate::ops::copy;

pub use sizes::{Sizes, TextSizes, VisionSizes};

/// What all names of the image encoder and of the text encoder begin with.
const VISION: &str = "blip.visual_encoder";
const TEXT: &str = "blip.text_encoder";
/// What is in the files and not in the network: projections for another training goal, a buffer, and what comes after the network.
const IGNORED: &[&str] = &["blip.vision_proj.", "blip.text_proj.", "embeddings.position_ids", "mlp.layers."];

/// Picture encoder and text encoder.
pub struct Blip {
    sizes: Sizes,
    vision: vision::VisionEncoder,
    text: text::TextEncoder,
}

impl Blip {
    /// The network in `file`, on `device`, whose sizes follow from its tensors; its matrices are multiplied in `precision`.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing, left over or not as expected.
    pub fn load(file: &TensorFile, device: &Device, precision: Precision) -> Result<Self> {
        let sizes = Sizes::of(file)?;
        let tensors = file.entries().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
        let file = file.with(names::blip::to_clip(tensors, VISION));
        let loader = Loader::new(&file, IGNORED, device).precision(precision);
        let root = loader.root();
        let vision = vision::VisionEncoder::load(&root.sub(VISION), &sizes.vision);
        let text = text::TextEncoder::load(&root.sub(TEXT), &sizes.text, sizes.vision.width);
        loader.finish()?;
        Ok(Self { sizes, vision, text })
    }

    /// What follows from the tensors.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Pictures `[b, 3, image, image]`, preprocessed, to tokens `[b, 1 + patches, width]`.
    pub fn see(&self, pixels: &Tensor) -> Tensor {
        self.vision.forward(pixels)
    }

    /// What the first token of each text becomes, `[b, width]`. `ids` are rows of equal length without padding, one for each
    /// picture of `seen`, which [`Blip::see`] gave.
    pub fn read(&self, ids: &[Vec<u32>], seen: &Tensor) -> Tensor {
        copy::cast(&self.text.forward(ids, seen), DType::F32)
    }
}
