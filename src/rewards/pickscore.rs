//! PickScore (Kirstain et al. 2023): how well a picture goes with its prompt, by a CLIP model that was trained on which
//! of two pictures people picked. Any CLIP folder in the layout of transformers will do.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};

use super::preprocess::Preprocess;
use super::{Images, Key, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::models::clip::Clip;
use crate::models::outline;
use crate::models::tokenizer::Tokenizer;

/// What flow_grpo, AWM and NFT divide the score by, to bring it near 1. Papers print it undivided.
const SCALE: f64 = 26.0;
/// Images that go through the model at a time; what they give does not depend on it.
const BATCH: usize = 16;

/// What its table can say.
pub(super) const KEYS: &[Key] = &[Key::path("model", "the folder of a CLIP model", &["models/PickScore_v1"])];

/// The reward: `exp(logit_scale) · cos(image, prompt) / 26`.
pub struct PickScore {
    clip: Clip,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    /// The embedding, of length 1, of every prompt seen so far.
    prompts: Mutex<HashMap<String, Vec<f64>>>,
}

impl PickScore {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`PickScore::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        Self::load(options.path("model").expect("resolved: it has a model"), device)
    }

    /// The model, tokenizer and preprocessing in `folder`.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let clip = Clip::load(folder, device)?;
        if outline::is_outline(folder) {
            let tokenizer = Tokenizer::blank(clip.config().text.max_position_embeddings);
            let preprocess = Preprocess::openai(clip.config().vision.image_size);
            return Ok(Self { clip, tokenizer, preprocess, prompts: Mutex::default() });
        }
        let tokenizer = Tokenizer::load(folder).context(
            "pickscore: its tokenizer, that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, belongs beside the weights",
        )?;
        let preprocess = Preprocess::load(folder, clip.config().vision.image_size)?;
        Ok(Self { clip, tokenizer, preprocess, prompts: Mutex::default() })
    }

    /// Embeds those of `prompts` that are new.
    fn learn(&self, prompts: &[&Prompt]) -> Result<()> {
        let most = self.clip.config().text.max_position_embeddings;
        let length = self.tokenizer.max_length().map_or(most, |n| n.min(most));
        let mut known = self.prompts.lock().expect("no panic while it is held");
        for prompt in prompts {
            if !known.contains_key(&prompt.text) {
                let ids = self.tokenizer.encode(&prompt.text, length)?.ids;
                let embeds = self.clip.device().once(|| self.clip.text_embeds(&[ids]).to_host());
                let embedding = unit(&embeds);
                known.insert(prompt.text.clone(), embedding);
            }
        }
        Ok(())
    }

    fn cosines(&self, images: &Tensor, prompts: &[&Prompt]) -> Vec<f64> {
        let known = self.prompts.lock().expect("no panic while it is held");
        let embeddings = images.to_host();
        let rows = embeddings.chunks(images.width());
        let pairs = rows.zip(prompts).map(|(row, prompt)| (unit(row), &known[&prompt.text]));
        pairs.map(|(image, text)| image.iter().zip(text).map(|(a, b)| a * b).sum()).collect()
    }
}

impl Reward for PickScore {
    fn name(&self) -> &'static str {
        "pickscore"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        self.learn(prompts)?;
        let factor = f64::from(self.clip.logit_scale()).exp() / SCALE;
        let mut scores = Vec::with_capacity(images.len());
        for (i, prompts) in prompts.chunks(BATCH).enumerate() {
            let batch = images.bytes().slice(i * BATCH..i * BATCH + prompts.len());
            let embeddings = self.clip.image_embeds(&self.preprocess.run(&batch));
            scores.extend(self.cosines(&embeddings, prompts).into_iter().map(|c| Score::of(factor * c)));
        }
        Ok(scores)
    }
}

/// `v` over its length.
fn unit(v: &[f32]) -> Vec<f64> {
    let length = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    v.iter().map(|x| f64::from(*x) / length.max(f64::MIN_POSITIVE)).collect()
}
