//! What the rewards have in common that look at pictures, and mostly at prompts, through a CLIP: embeddings of length 1, their
//! cosines, and the gradient of those to the pictures.

#[cfg(test)]
pub(super) mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, ensure};

use super::images::{planes, planes_backward};
use super::preprocess::{Floats, Pixels};
use super::{Dtype, Images};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::models::clip::{Clip, ClipVision, Options};
use crate::models::outline;
use crate::models::tokenizer::Tokenizer;
use crate::ops::copy;

/// Images that go through a model at a time; what they give does not depend on it.
const BATCH: usize = 16;
/// The same for a gradient, which keeps what the blocks of a model compute: 0.4 GB a picture of a ViT-H/14 in f32.
const DIFFERENTIATED: usize = 4;
/// OpenAI's ViT-L/14 for messages, and where it is looked for.
pub(super) const OPENAI_CLIP: &str = "a CLIP model";
pub(super) const OPENAI_CLIP_PLACE: &str = "models/clip-vit-large-patch14";
/// Where the tokenizer is that PickScore was trained with.
const LAION: &str = "models/CLIP-ViT-H-14-laion2B-s32B-b79K";
/// How many tokens the built-in tokenizer has.
const BUILT_IN: usize = 49408;

/// The embedding of every picture, divided by its length.
pub(super) fn embeddings(vision: &ClipVision, pixels: &Pixels, images: &Images) -> Vec<Vec<f64>> {
    let batches = (0..images.len()).step_by(BATCH).map(|first| first..images.len().min(first + BATCH));
    let of = |batch| rows(&vision.embeds(&pixels.of(images, batch).to(&vision.device())));
    batches.flat_map(of).map(|row| Unit::of(&row).direction).collect()
}

/// The gradient to decoded pictures `[b, h, w, 3]` of numbers that are functions of an embedding of length 1: `slope` says the
/// gradient to that of picture `i`.
pub(super) fn gradient(
    vision: &ClipVision,
    steps: Floats,
    images: &Tensor,
    slope: impl Fn(usize) -> Vec<f64>,
) -> Tensor {
    let (height, width) = (images.dim(1), images.dim(2));
    let mut all = images.zeros_like(images.shape());
    for first in (0..images.dim(0)).step_by(DIFFERENTIATED) {
        let batch = images.slice(first..images.dim(0).min(first + DIFFERENTIATED));
        let (embeds, tape) = vision.kept(&steps.run(&planes(&batch)).to(&vision.device()));
        let of = |(i, row): (usize, Vec<f32>)| {
            let unit = Unit::of(&row);
            unit.backward(&slope(first + i))
        };
        let d: Vec<f32> = rows(&embeds).into_iter().enumerate().flat_map(of).collect();
        let d = vision.backward(&tape, &Tensor::from_slice(&embeds.device(), &d, embeds.shape())).to(&images.device());
        let d = planes_backward(&batch, &steps.backward(&d, height, width));
        copy::rows_into(&mut all, first, &d);
    }
    all
}

fn rows(t: &Tensor) -> Vec<Vec<f32>> {
    t.to_host().chunks(t.width()).map(<[f32]>::to_vec).collect()
}

/// A vector as its length and what is left without.
struct Unit {
    direction: Vec<f64>,
    length: f64,
}

impl Unit {
    fn of(v: &[f32]) -> Self {
        let length = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        Self { direction: v.iter().map(|x| f64::from(*x) / length).collect(), length }
    }

    /// The gradient to the vector, if `d` is that to its direction.
    fn backward(&self, d: &[f64]) -> Vec<f32> {
        let along = dot(d, &self.direction);
        d.iter().zip(&self.direction).map(|(d, u)| ((d - along * u) / self.length) as f32).collect()
    }
}

/// The sum of products, in their order.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// How well pictures go with prompts: the cosine of their embeddings by a CLIP.
pub(super) struct Similarity {
    clip: Clip,
    tokenizer: Tokenizer,
    pixels: Pixels,
    /// The embedding, of length 1, of every prompt seen so far.
    prompts: Mutex<HashMap<String, Vec<f64>>>,
}

/// Who made a model, as its tokenizer goes.
#[derive(Clone, Copy)]
pub(super) enum Maker {
    /// Files of transformers: the tokenizer beside the weights, else LAION's, else the built-in one.
    Transformers,
    /// Files of open_clip: the built-in tokenizer after open_clip's clean-up.
    OpenClip,
}

/// How a model that is multiplied in `dtype` is opened; a plan takes its shapes as they are.
pub(super) fn options(model: &Path, dtype: Dtype) -> Options {
    let precision = if outline::is_outline(model) { Default::default() } else { dtype.precision() };
    Options { precision, activation: None }
}

/// The folder that `model` is, or lies in.
pub(super) fn folder(model: &Path) -> &Path {
    if model.is_dir() { model } else { model.parent().unwrap_or(Path::new("")) }
}

impl Similarity {
    /// The CLIP `model`, a folder or a file; `pixels` says how a picture becomes the square that it takes, of that size.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(
        model: &Path,
        maker: Maker,
        dtype: Dtype,
        device: &Device,
        pixels: impl FnOnce(usize) -> Result<Pixels>,
    ) -> Result<Self> {
        let clip = Clip::open(model, options(model, dtype), device)?;
        let pixels = pixels(clip.config().vision.image_size)?;
        let tokenizer = tokenizer(model, maker, &clip)?;
        Ok(Self { clip, tokenizer, pixels, prompts: Mutex::default() })
    }

    /// What the model multiplies cosines with.
    pub fn factor(&self) -> f64 {
        f64::from(self.clip.logit_scale()).exp()
    }

    /// The cosine of each picture with its prompt.
    ///
    /// # Errors
    /// If a prompt has a piece that the vocabulary cannot express.
    pub fn cosines(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<f64>> {
        self.learn(prompts)?;
        let known = self.prompts.lock().expect("no panic while it is held");
        let embeddings = embeddings(self.clip.vision(), &self.pixels, images);
        Ok(embeddings.iter().zip(prompts).map(|(image, prompt)| dot(image, &known[&prompt.text])).collect())
    }

    /// The gradient of `factor` times the cosines to decoded pictures that are preprocessed by `steps`.
    ///
    /// # Errors
    /// As [`Similarity::cosines`].
    pub fn gradient(&self, steps: Floats, factor: f64, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        self.learn(prompts)?;
        let known = self.prompts.lock().expect("no panic while it is held");
        let slope = |i: usize| known[&prompts[i].text].iter().map(|x| factor * x).collect();
        Ok(gradient(self.clip.vision(), steps, images, slope))
    }

    /// Height and width of the pixels that the model takes.
    pub fn image_size(&self) -> usize {
        self.clip.vision().image_size()
    }

    /// Takes `embedding` for that of `prompt`: the models of tests have no words.
    #[cfg(test)]
    pub fn know(&self, prompt: &str, embedding: &[f32]) {
        self.prompts.lock().unwrap().insert(prompt.into(), Unit::of(embedding).direction);
    }

    #[cfg(test)]
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// How many prompts it has seen.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.prompts.lock().unwrap().len()
    }

    /// Embeds the prompts that are new, one at a time: what one gives must not depend on the others.
    fn learn(&self, prompts: &[&Prompt]) -> Result<()> {
        let mut known = self.prompts.lock().expect("no panic while it is held");
        let most = self.clip.config().text.max_position_embeddings;
        let most = self.tokenizer.max_length().map_or(most, |n| n.min(most));
        for prompt in prompts {
            if !known.contains_key(&prompt.text) {
                let ids = self.tokenizer.encode(&prompt.text, most)?.ids;
                let embeds = self.clip.device().once(|| self.clip.text_embeds(&[ids]).to_host());
                known.insert(prompt.text.clone(), Unit::of(&embeds).direction);
            }
        }
        Ok(())
    }
}

/// The tokenizer of the CLIP `model`: see [`Maker`].
pub(super) fn tokenizer(model: &Path, maker: Maker, clip: &Clip) -> Result<Tokenizer> {
    let text = &clip.config().text;
    if outline::is_outline(model) {
        return Ok(Tokenizer::blank(text.max_position_embeddings));
    }
    let is_there = |folder: &&Path| ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join(name).exists());
    let found = [folder(model), Path::new(LAION)].into_iter().find(is_there);
    match (maker, found) {
        (Maker::Transformers, Some(folder)) => return Tokenizer::load(folder),
        (Maker::Transformers | Maker::OpenClip, _) => {}
    }
    ensure!(
        text.vocab_size >= BUILT_IN,
        "{}: no tokenizer.json or vocab.json there, and the model's {} tokens are not the {BUILT_IN} of the built-in one",
        folder(model).display(),
        text.vocab_size
    );
    Ok(match maker {
        Maker::Transformers => Tokenizer::clip(),
        Maker::OpenClip => Tokenizer::open_clip(),
    })
}
