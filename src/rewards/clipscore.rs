//! CLIPScore (Hessel et al. 2021) as the training programs have it: the plain cosine of picture and prompt by OpenAI's CLIP.

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

use super::preprocess::{Floats, Pixels, Preprocess};
use super::similarity::{Maker, Similarity};
use super::{Differentiable, Dtype, Images, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};

/// How a picture is brought to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// DiffusionNFT's: not rounded, bilinear.
    TensorBilinear,
    /// Flow-Factory's: as CLIP's own processor, in 8 bits.
    Pil,
}

/// The reward: `cos(image, prompt)`. Its gradient is through [`Resize::TensorBilinear`].
pub struct ClipScore(Similarity);

impl ClipScore {
    /// The CLIP `model` in either layout.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(model: &Path, resize: Resize, dtype: Dtype, device: &Device) -> Result<Self> {
        let pixels = |size| {
            Ok(match resize {
                Resize::TensorBilinear => Pixels::Floats(Floats::cropped(size)),
                Resize::Pil => Pixels::Bytes(Preprocess::openai(size)),
            })
        };
        Ok(Self(Similarity::load(model, Maker::Transformers, dtype, device, pixels)?))
    }
}

impl Reward for ClipScore {
    fn name(&self) -> &'static str {
        "clipscore"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        Ok(self.0.cosines(images, prompts)?.into_iter().map(Score::of).collect())
    }

    fn gradient(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl Differentiable for ClipScore {
    fn gradient(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        self.0.gradient(Floats::cropped(self.0.image_size()), 1.0, images, prompts)
    }
}
