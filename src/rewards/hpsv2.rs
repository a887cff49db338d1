//! HPSv2 and v2.1 (Wu et al. 2023): the cosine of picture and prompt by a CLIP ViT-H/14 that was trained on which pictures
//! people prefer. The two versions are not comparable.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::preprocess::{Floats, Pixels, Preprocess};
use super::similarity::{Maker, Similarity};
use super::{Differentiable, Dtype, Images, Key, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};

/// The two versions, the newer one first.
const FILES: [&str; 2] = ["HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"];
/// What the reference programs load first, to overwrite all of it.
const LAION: [&str; 2] = ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"];

/// How a picture is brought to the model's size, with zeros around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// DiffusionNFT's and RSM's: not rounded.
    Tensor,
    /// The `hpsv2` package's: in 8 bits.
    Pil,
}

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", "the weights of HPSv2", &["models/HPS_v2.1_compressed.pt", "models/HPS_v2_compressed.pt"]),
    Key::choice("preprocess", &["tensor", "pil"]),
    Dtype::KEY,
];

/// The reward: `cos(image, prompt)`. Its gradient is through [`Resize::Tensor`].
pub struct Hpsv2(Similarity);

impl Hpsv2 {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`Hpsv2::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let resize = if options.choice("preprocess") == "pil" { Resize::Pil } else { Resize::Tensor };
        Self::load(options.path("model").expect("resolved: it has a model"), resize, Dtype::of(options), device)
    }

    /// The file of weights `model`, or the folder that holds it.
    ///
    /// # Errors
    /// Names the file if it is missing or not what was expected: also if it is LAION's, whose cosine looks like a score and is
    /// none.
    pub fn load(model: &Path, resize: Resize, dtype: Dtype, device: &Device) -> Result<Self> {
        let model = &weights(model)?;
        let pixels = |size| {
            Ok(match resize {
                Resize::Tensor => Pixels::Floats(Floats::padded(size)),
                Resize::Pil => Pixels::Bytes(Preprocess::padded(size)),
            })
        };
        Ok(Self(Similarity::load(model, Maker::OpenClip, dtype, device, pixels)?))
    }

    /// What it compares with.
    #[cfg(test)]
    pub(super) fn similarity(&self) -> &Similarity {
        &self.0
    }

    /// The reward by this.
    #[cfg(test)]
    pub(super) fn of(similarity: Similarity) -> Self {
        Self(similarity)
    }
}

/// The file of weights that `model` is, or that lies in the folder it is.
fn weights(model: &Path) -> Result<PathBuf> {
    let inside = |names: [&str; 2]| names.map(|name| model.join(name)).into_iter().find(|path| path.is_file());
    if let Some(file) = inside(FILES) {
        return Ok(file);
    }
    let named = model.file_name().and_then(|name| name.to_str()).is_some_and(|name| LAION.contains(&name));
    if named || inside(LAION).is_some() {
        bail!(
            "{}: LAION's weights, whose cosine looks like a score and is none; expected {}, which needs no other file",
            model.display(),
            FILES.join(" or ")
        );
    }
    Ok(model.to_path_buf())
}

impl Reward for Hpsv2 {
    fn name(&self) -> &'static str {
        "hpsv2"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        Ok(self.0.cosines(images, prompts)?.into_iter().map(Score::of).collect())
    }

    fn gradient(&self) -> Option<&dyn Differentiable> {
        Some(self)
    }
}

impl Differentiable for Hpsv2 {
    fn gradient(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        self.0.gradient(Floats::padded(self.0.image_size()), 1.0, images, prompts)
    }
}
