//! ImageReward (Xu et al. 2023): how people would rank a picture for its prompt, by a BLIP that reads the prompt while it looks at
//! the picture, and five linear layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::head::Head;
use super::options::Kind;
use super::preprocess::Preprocess;
use super::similarity::folder;
use super::{Dtype, Images, Key, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::{Device, Tensor};
use crate::io::TensorFile;
use crate::io::origins::from;
use crate::models::blip::Blip;
use crate::models::outline::is_outline;
use crate::models::tokenizer::WordPiece;
use crate::ops::copy;

/// Mean and deviation of what the head gives on the training data: in its units.
const MEAN: f64 = 0.167_173_628_300_524_26;
const STD: f64 = 1.033_339_496_605_407_2;
/// What BLIP adds to BERT's vocabulary.
const ADDED: [&str; 2] = ["[DEC]", "[ENC]"];
/// What the weights are called in a folder.
const NAMES: [&str; 3] = ["ImageReward.safetensors", "ImageReward.pt", "pytorch_model.bin"];
/// Where BERT's vocabulary is looked for, if it is not beside the weights.
const BERT: &str = "models/bert-base-uncased";
/// Images that go through the model at a time; what they give does not depend on it.
const BATCH: usize = 16;

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", "the weights of ImageReward", &["models/ImageReward", "models/ImageReward.pt"]),
    Key { name: "max_length", kind: Kind::Whole { default: 35, least: 2, most: 512 } },
    Dtype::KEY,
];

/// The reward: `(head(BLIP(picture, prompt)) - mean) / deviation`, of both on the training data.
pub struct ImageReward {
    /// None in plans of runs whose weights are not at hand.
    network: Option<Network>,
}

struct Network {
    device: Device,
    blip: Blip,
    head: Head,
    tokenizer: WordPiece,
    preprocess: Preprocess,
    max_length: usize,
}

impl ImageReward {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`ImageReward::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let model = options.path("model").expect("resolved: it has a model");
        if is_outline(model) {
            return Ok(Self { network: None });
        }
        Self::load(model, options.whole("max_length"), Dtype::of(options), device)
    }

    /// The weights `model`, or those in the folder `model`, on `device`, and the vocabulary beside them. Prompts are cut to `max_length` tokens,
    /// the first and the last included.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(model: &Path, max_length: usize, dtype: Dtype, device: &Device) -> Result<Self> {
        let file = TensorFile::open(&weights(model)?)?;
        let blip = Blip::load(&file, device, dtype.precision())?;
        let text = &blip.sizes().text;
        let head = Head::of(&file, "mlp.")?;
        ensure!(
            head.weight.len() == text.width,
            "{}: the head is for a width of {}, the text encoder has {}",
            file.path().display(),
            head.weight.len(),
            text.width
        );
        let tokenizer = tokenizer(folder(model))?;
        ensure!(
            tokenizer.len() == text.vocabulary,
            "{}: {} tokens with {}, the model {} has {}",
            tokenizer.path().display(),
            tokenizer.len(),
            ADDED.join(" and "),
            file.path().display(),
            text.vocabulary
        );
        ensure!(
            max_length <= text.positions,
            "rewards.imagereward.max_length is {max_length}, the model reads at most {} tokens",
            text.positions
        );
        let preprocess = Preprocess::open_clip(blip.sizes().vision.image());
        let network = Network { device: device.clone(), blip, head, tokenizer, preprocess, max_length };
        Ok(Self { network: Some(network) })
    }
}

/// The file of weights at `model`.
fn weights(model: &Path) -> Result<PathBuf> {
    if !model.is_dir() {
        return Ok(model.to_path_buf());
    }
    match NAMES.iter().map(|name| model.join(name)).find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("{}: no weights of ImageReward: looked for {}", model.display(), NAMES.join(", ")),
    }
}

fn tokenizer(beside: &Path) -> Result<WordPiece> {
    let is_there = |folder: &Path| ["vocab.txt", "tokenizer.json"].iter().any(|name| folder.join(name).exists());
    let places = [beside, Path::new(BERT)];
    let Some(found) = places.into_iter().find(|folder| is_there(folder)) else {
        bail!(
            "imagereward: no vocab.txt or tokenizer.json in {} or {BERT}{}",
            if beside == Path::new("") { ".".into() } else { beside.display().to_string() },
            from(Path::new(BERT))
        );
    };
    WordPiece::load(found, &ADDED)
}

impl Network {
    /// The scores of a few pictures. Prompts of one length are read together: none needs padding, and what one gives does not
    /// depend on the others.
    fn score(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        let seen = self.blip.see(&self.preprocess.run(images));
        let mut lengths: BTreeMap<usize, (Vec<usize>, Vec<Vec<u32>>)> = BTreeMap::new();
        for (i, prompt) in prompts.iter().enumerate() {
            let ids = self.tokenizer.encode(&prompt.text, self.max_length)?;
            let (places, all) = lengths.entry(ids.len()).or_default();
            places.push(i);
            all.push(ids);
        }
        let mut scores = vec![Score::default(); prompts.len()];
        for (places, ids) in lengths.values() {
            let first = self.blip.read(ids, &copy::gather(&seen, places));
            for (place, row) in places.iter().zip(first.to_host().chunks(first.width())) {
                let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                scores[*place] = Score::of((self.head.score(&row) - MEAN) / STD);
            }
        }
        Ok(scores)
    }
}

impl Reward for ImageReward {
    fn name(&self) -> &'static str {
        "imagereward"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        let Some(network) = &self.network else { return Ok(vec![Score::default(); images.len()]) };
        let mut scores = Vec::with_capacity(images.len());
        for (i, prompts) in prompts.chunks(BATCH).enumerate() {
            let batch = images.bytes().slice(i * BATCH..i * BATCH + prompts.len()).to(&network.device);
            scores.extend(network.score(&batch, prompts)?);
        }
        Ok(scores)
    }
}
