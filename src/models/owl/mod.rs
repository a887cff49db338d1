//! mPLUG-Owl2 (Ye et al. 2023): a picture encoder, an abstractor that brings what it sees to a few tokens, and a LLaMA in which
//! tokens of pictures have keys, values and norms of their own.

mod abstractor;
mod config;
mod language;
mod vision;

use std::path::Path;

use anyhow::Result;

use crate::device::{Device, Precision, Tensor};
use crate::io::{Loader, TensorFile};
use crate::models::names;

pub use config::{AbstractorConfig, LanguageConfig, OwlConfig, VisionConfig};
pub use language::Sentence;

/// What the names begin with of the picture encoder and of what comes after it.
const VISION: &str = "model.vision_model";
const ABSTRACTOR: &str = "model.visual_abstractor";
/// Buffers that old files hold and nobody reads.
const IGNORED: &[&str] = &["rotary_emb.inv_freq", "position_ids"];

/// The whole model.
pub struct Owl {
    config: OwlConfig,
    vision: vision::VisionEncoder,
    abstractor: abstractor::Abstractor,
    language: language::Language,
}

impl Owl {
    /// The model in `folder`: `config.json` and the weights `model`, on `device`; its matrices are multiplied in `precision`.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing, left over or not as expected.
    pub fn load(folder: &Path, device: &Device, precision: Precision) -> Result<Self> {
        let file = TensorFile::open_component(folder, "model", None)?;
        let config = OwlConfig::read(&file, &folder.join("config.json"))?;
        let tensors = file.entries().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
        let encoder = format!("{VISION}.encoder");
        let file = file.with(names::owl::to_clip(tensors, &encoder, config.vision.heads));
        let loader = Loader::new(&file, IGNORED, device).precision(precision);
        let root = loader.root();
        let vision = vision::VisionEncoder::load(&root.sub(VISION), &config.vision);
        let abstractor = abstractor::Abstractor::load(&root.sub(ABSTRACTOR), &config);
        let language = language::Language::load(&root, &config.language);
        loader.finish()?;
        Ok(Self { config, vision, abstractor, language })
    }

    /// What the model was built from.
    pub fn config(&self) -> &OwlConfig {
        &self.config
    }

    /// Pictures `[b, 3, image, image]`, preprocessed, to tokens of the language model `[b, queries + 1, width]`.
    pub fn see(&self, pixels: &Tensor) -> Tensor {
        self.abstractor.forward(&self.vision.forward(pixels))
    }

    /// For each picture that [`Owl::see`] gave, the logits of the tokens `next` after the sentence, `[b, next]`.
    pub fn continued(&self, sentence: &Sentence, seen: &Tensor, next: &[u32]) -> Tensor {
        self.language.forward(sentence, seen, next)
    }
}
