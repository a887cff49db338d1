//! DeQA-Score (You et al. 2025): how good a picture is to look at, whatever its prompt. An mPLUG-Owl2 is asked, and what counts is how
//! likely each of five words is to come next.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::preprocess::Preprocess;
use super::{Dtype, Images, Key, Kind, Options, Reward, Score, jpeg};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::outline::is_outline;
use crate::models::owl::{Owl, Sentence};
use crate::models::tokenizer::SentencePiece;

/// The question, before and after the picture.
const QUESTION: [&str; 2] =
    ["USER: How would you rate the quality of this image?\n", "\nASSISTANT: The quality of the image is"];
/// The words that may come next, and what each is worth.
const LEVELS: [(&str, f64); 5] = [("excellent", 5.0), ("good", 4.0), ("fair", 3.0), ("poor", 2.0), ("bad", 1.0)];
/// What surrounds a picture that is not square: CLIP's mean in 8 bits.
const AROUND: [u8; 3] = [122, 116, 104];
/// Images that go through the model at a time; what they give does not depend on it.
const BATCH: usize = 4;

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", "the folder of DeQA-Score", &["models/DeQA-Score-Mix3"]),
    Key { name: "jpeg_quality", kind: Kind::Whole { default: 0, least: 0, most: 100 } },
    Dtype::KEY,
];

/// The reward: the mean of what the five words are worth, by how likely they are, over 5.
pub struct Deqa {
    /// None in plans of runs whose weights are not at hand.
    network: Option<Network>,
}

struct Network {
    device: Device,
    owl: Owl,
    preprocess: Preprocess,
    question: Sentence,
    words: Vec<u32>,
    /// At which quality pictures are sent as JPEG files to who judges them, if they are.
    jpeg: Option<f32>,
}

impl Deqa {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`Deqa::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let model = options.path("model").expect("resolved: it has a model");
        if is_outline(model) {
            return Ok(Self { network: None });
        }
        let quality = options.whole("jpeg_quality");
        Self::load(model, (quality > 0).then_some(quality as f32), Dtype::of(options), device)
    }

    /// The model in `folder`, on `device`: `config.json`, weights and `tokenizer.model`. Pictures go through JPEG at the quality `jpeg`, if there is
    /// one, as they do on their way to the original's server.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(folder: &Path, jpeg: Option<f32>, dtype: Dtype, device: &Device) -> Result<Self> {
        let owl = Owl::load(folder, device, dtype.precision())?;
        let tokenizer = SentencePiece::load(&folder.join("tokenizer.model"))?;
        let (tokens, vocabulary) = (tokenizer.count(), owl.config().language.vocabulary);
        ensure!(tokens <= vocabulary, "{}: {tokens} tokens, the model has {vocabulary}", tokenizer.path().display());
        let [before, after] = QUESTION.map(|part| tokenizer.encode(part));
        let before = std::iter::once(tokenizer.begin()).chain(before).collect();
        let word = |(word, _): &(&str, f64)| tokenizer.encode(word).first().copied().context("a word has a token");
        let words = LEVELS.iter().map(word).collect::<Result<Vec<u32>>>()?;
        let preprocess = Preprocess::load(folder, owl.config().vision.image())?;
        let question = Sentence { before, after };
        Ok(Self { network: Some(Network { device: device.clone(), owl, preprocess, question, words, jpeg }) })
    }
}

/// `picture` in the middle of a square.
fn squared(picture: &RgbImage) -> RgbImage {
    let (w, h) = (picture.width, picture.height);
    let side = w.max(h);
    let (left, top) = ((side - w) / 2, (side - h) / 2);
    let mut data = AROUND.repeat(side * side);
    for (y, row) in picture.data.chunks_exact(3 * w.max(1)).enumerate() {
        data[3 * ((top + y) * side + left)..][..row.len()].copy_from_slice(row);
    }
    RgbImage { width: side, height: side, data }
}

impl Network {
    /// The logits of the five words for each of a few pictures.
    fn look(&self, pictures: &[RgbImage]) -> Result<Vec<[f32; LEVELS.len()]>> {
        let mut data = Vec::new();
        for picture in pictures {
            let square = match self.jpeg {
                Some(quality) => squared(&jpeg::sent(picture, quality)?),
                None => squared(picture),
            };
            data.extend(square.data);
        }
        let side = pictures[0].width.max(pictures[0].height);
        let squares = Tensor::from_bytes(&self.device, &data, &[pictures.len(), side, side, 3]);
        let seen = self.owl.see(&self.preprocess.run(&squares));
        let logits = self.owl.continued(&self.question, &seen, &self.words).to_host();
        Ok(logits.as_chunks().0.to_vec())
    }
}

/// How likely each word is among the five, by the softmax of their logits.
fn likelihoods(logits: &[f32; LEVELS.len()]) -> [f64; LEVELS.len()] {
    let most = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let weights = logits.map(|l| f64::from(l - most).exp());
    let total: f64 = weights.iter().sum();
    weights.map(|weight| weight / total)
}

/// What the words are worth on average, over 5.
fn score(logits: &[f32; LEVELS.len()]) -> Score {
    let mean: f64 = likelihoods(logits).iter().zip(LEVELS).map(|(likely, (_, level))| likely * level).sum();
    Score::of(mean / 5.0)
}

/// `{word: {logit, likelihood}}`.
fn shown(logits: &[f32; LEVELS.len()]) -> Value {
    let words = LEVELS.iter().zip(logits).zip(likelihoods(logits));
    let words =
        words.map(|(((word, _), logit), likely)| ((*word).to_string(), json!({"logit": logit, "likelihood": likely})));
    Value::Object(words.collect::<Map<_, _>>())
}

impl Deqa {
    /// What `of` makes of the logits of each image; what it makes of zeros where there is no network.
    fn judge<T>(&self, images: &Images, of: impl Fn(&[f32; LEVELS.len()]) -> T) -> Result<Vec<T>> {
        let Some(network) = &self.network else { return Ok((0..images.len()).map(|_| of(&[0.0; 5])).collect()) };
        let mut all = Vec::with_capacity(images.len());
        for pictures in images.pictures().chunks(BATCH) {
            all.extend(network.look(pictures)?.iter().map(&of));
        }
        Ok(all)
    }
}

impl Reward for Deqa {
    fn name(&self) -> &'static str {
        "deqa"
    }

    fn score(&self, images: &Images, _: &[&Prompt]) -> Result<Vec<Score>> {
        self.judge(images, score)
    }

    /// How likely each of the five words is.
    fn explain(&self, images: &Images, _: &[&Prompt]) -> Result<Option<Vec<(Score, Value)>>> {
        self.judge(images, |logits| (score(logits), shown(logits))).map(Some)
    }
}
