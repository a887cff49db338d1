//! CLIPScore (Hessel et al. 2021) as the training programs have it: the plain cosine of picture and prompt by OpenAI's CLIP.

use std::path::Path;

use anyhow::Result;

use super::preprocess::{Floats, Pixels, Preprocess};
use super::similarity::{Maker, OPENAI_CLIP, OPENAI_CLIP_PLACE, Similarity};
use super::{Differentiable, Dtype, Images, Key, Options, Reward, Score};
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

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", OPENAI_CLIP, &[OPENAI_CLIP_PLACE]),
    Key::choice("preprocess", &["tensor_bilinear", "pil"]),
    Dtype::KEY,
];

/// The reward: `cos(image, prompt)`. Its gradient is through [`Resize::TensorBilinear`].
pub struct ClipScore(Similarity);

impl ClipScore {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`ClipScore::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let resize = if options.choice("preprocess") == "pil" { Resize::Pil } else { Resize::TensorBilinear };
        Self::load(options.path("model").expect("resolved: it has a model"), resize, Dtype::of(options), device)
    }

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

    /// What it compares with.
    #[cfg(test)]
    pub(super) fn similarity(&self) -> &Similarity {
        &self.0
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
