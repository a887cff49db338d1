//! LAION's improved aesthetic predictor (C. Schuhmann 2022): how people would rate a picture from 1 to 10, by five linear layers
//! on OpenAI's CLIP ViT-L/14. No prompt is looked at.

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Result, ensure};

use super::head::Head;
use super::preprocess::{Floats, Pixels, Preprocess};
use super::similarity::{OPENAI_CLIP, OPENAI_CLIP_PLACE, embeddings, gradient, options};
use super::{Differentiable, Dtype, Images, Key, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::models::clip::ClipVision;
use crate::models::outline;

/// How a picture is brought to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// As CLIP's own processor, in 8 bits.
    Pil,
    /// RSM's for first-order training: not rounded, bicubic without antialiasing, both sides to the model's.
    Rsm,
}

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", OPENAI_CLIP, &[OPENAI_CLIP_PLACE]),
    Key::path("head", "the aesthetic head", &["models/sac+logos+ava1-l14-linearMSE.pth"]),
    Key::choice("preprocess", &["pil", "rsm"]),
    Dtype::KEY,
];

/// The reward: `head(embedding of length 1)`. Its gradient is through [`Resize::Rsm`].
pub struct Aesthetic {
    vision: ClipVision,
    head: Head,
    pixels: Pixels,
}

impl Aesthetic {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`Aesthetic::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let path = |key| options.path(key).expect("resolved: it has a model and a head");
        let resize = if options.choice("preprocess") == "rsm" { Resize::Rsm } else { Resize::Pil };
        Self::load(path("model"), path("head"), resize, Dtype::of(options), device)
    }

    /// The CLIP `model` in either layout, of which the half that sees pictures is read, and the file `head`.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected, also if the two do not fit.
    pub fn load(model: &Path, head: &Path, resize: Resize, dtype: Dtype, device: &Device) -> Result<Self> {
        let vision = ClipVision::open(model, options(model, dtype), device)?;
        let weights = match outline::is_outline(head) || outline::is_outline(model) {
            true => Head { weight: vec![0.0; vision.joint()], bias: 0.0 },
            false => Head::load(head)?,
        };
        ensure!(
            weights.weight.len() == vision.joint(),
            "{}: for embeddings of width {}, those of {} have {}",
            head.display(),
            weights.weight.len(),
            model.display(),
            vision.joint()
        );
        let pixels = match resize {
            Resize::Pil => Pixels::Bytes(Preprocess::openai(vision.image_size())),
            Resize::Rsm => Pixels::Floats(Floats::stretched(vision.image_size())),
        };
        Ok(Self { vision, head: weights, pixels })
    }
}

impl Reward for Aesthetic {
    fn name(&self) -> &'static str {
        "aesthetic"
    }

    fn score(&self, images: &Images, _: &[&Prompt]) -> Result<Vec<Score>> {
        let embeddings = embeddings(&self.vision, &self.pixels, images);
        Ok(embeddings.iter().map(|embedding| Score::of(self.head.score(embedding))).collect())
    }

    fn gradient(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl Differentiable for Aesthetic {
    fn gradient(&self, images: &Tensor, _: &[&Prompt]) -> Result<Tensor> {
        let steps = Floats::stretched(self.vision.image_size());
        Ok(gradient(&self.vision, steps, images, |_| self.head.weight.clone()))
    }
}
