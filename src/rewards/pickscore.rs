//! PickScore (Kirstain et al. 2023): how well a picture goes with its prompt, by a CLIP model that was trained on which
//! of two pictures people picked.

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

use super::preprocess::{Floats, Pixels, Preprocess};
use super::similarity::{Maker, Similarity, folder};
use super::{Differentiable, Dtype, Images, Key, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::models::outline;

/// What flow_grpo, AWM and NFT divide the score by, to bring it near 1. Papers print it undivided.
const SCALE: f64 = 26.0;

/// What its table can say.
pub(super) const KEYS: &[Key] = &[Key::path("model", "a CLIP model", &["models/PickScore_v1"]), Dtype::KEY];

/// The reward: `exp(logit_scale) · cos(image, prompt) / 26`.
///
/// Its gradient is that of the same number with the picture not rounded to 8 bits but preprocessed as in RSM's first-order
/// training ([`Floats::padded`]), which does not divide by 26.
pub struct PickScore(Similarity);

impl PickScore {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`PickScore::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        Self::load(options.path("model").expect("resolved: it has a model"), Dtype::of(options), device)
    }

    /// The CLIP `model` in either layout, with tokenizer and preprocessing from its folder where they are there.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(model: &Path, dtype: Dtype, device: &Device) -> Result<Self> {
        let pixels = |size| {
            let outlined = outline::is_outline(model);
            let steps = if outlined { Preprocess::openai(size) } else { Preprocess::load(folder(model), size)? };
            Ok(Pixels::Bytes(steps))
        };
        Ok(Self(Similarity::load(model, Maker::Transformers, dtype, device, pixels)?))
    }

    /// What it compares with.
    #[cfg(test)]
    pub(super) fn similarity(&self) -> &Similarity {
        &self.0
    }
}

impl Reward for PickScore {
    fn name(&self) -> &'static str {
        "pickscore"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        let factor = self.0.factor() / SCALE;
        Ok(self.0.cosines(images, prompts)?.into_iter().map(|c| Score::of(factor * c)).collect())
    }

    fn gradient(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl Differentiable for PickScore {
    fn gradient(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        self.0.gradient(Floats::padded(self.0.image_size()), self.0.factor() / SCALE, images, prompts)
    }
}
