//! Text rendering (Flow-GRPO, Liu et al. 2025): does the picture show the words that the prompt quotes? PaddleOCR 2.9 reads
//! it, with its English models and everything around them.

mod detect;
mod recognise;
#[cfg(test)]
mod tests;
mod unclip;

use std::path::Path;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Value, json};

use self::detect::{Map, Quad};
use self::recognise::{Alphabet, Batch};
use super::{Images, Key, Options, Reward, Score};
use crate::data::{Prompt, PromptSet};
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::io::origins::from;
use crate::models::outline::is_outline;
use crate::models::ppocr::{Detector, Recogniser};

/// Where its models are looked for.
const PLACE: &str = "models/ppocr-en";
/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::path("model", "the folder that tools/fetch_ppocr.sh writes", &[PLACE]),
    Key::choice("channels", &["rgb", "bgr"]),
];

/// In which order the networks see a picture's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red first: what the reference rewards feed, and what they were trained against.
    Rgb,
    /// Blue first: what PaddleOCR expects.
    Bgr,
}

/// A line of text in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its corners, clockwise from the upper left, in pixels.
    pub quad: [[f32; 2]; 4],
    /// What it says.
    pub text: String,
    /// How sure that is, 0.5 to 1.
    pub confidence: f32,
}

/// The reward: 1 less the share of the quoted text that would have to be changed to find it.
pub struct Ocr {
    /// None in plans of runs whose weights are not at hand.
    networks: Option<Networks>,
}

struct Networks {
    device: Device,
    detector: Detector,
    recogniser: Recogniser,
    alphabet: Alphabet,
    channels: Channels,
}

impl Ocr {
    /// The reward for `options`.
    ///
    /// # Errors
    /// As [`Ocr::load`].
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let channels = if options.choice("channels") == "bgr" { Channels::Bgr } else { Channels::Rgb };
        Self::load(options.path("model").expect("resolved: it has a model"), channels, device)
    }

    /// The networks and the alphabet in `folder`, or in that of one of its files; the networks on `device`.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(folder: &Path, channels: Channels, device: &Device) -> Result<Self> {
        if is_outline(folder) {
            return Ok(Self { networks: None });
        }
        let folder = if folder.is_file() { folder.parent().expect("a file is in a folder") } else { folder };
        let file = |name: &str| {
            let path = folder.join(name);
            if !path.is_file() {
                bail!("{}: missing{}", path.display(), from(Path::new(PLACE)));
            }
            Ok(path)
        };
        let [detector, recogniser, alphabet] = ["det.safetensors", "rec.safetensors", "dict.txt"].map(file);
        let (detector, recogniser) = (Detector::load(&detector?, device)?, Recogniser::load(&recogniser?, device)?);
        let alphabet = Alphabet::load(&alphabet?, recogniser.classes())?;
        let networks = Networks { device: device.clone(), detector, recogniser, alphabet, channels };
        Ok(Self { networks: Some(networks) })
    }

    /// How nearly `image` shows the words that `prompt` quotes.
    ///
    /// # Errors
    /// If it quotes none.
    pub fn value(&self, image: &RgbImage, prompt: &str) -> Result<f64> {
        Ok(nearness(&self.read(image), &target(prompt)?))
    }

    /// The lines of text in `image`, in reading order.
    pub fn read(&self, image: &RgbImage) -> Vec<Line> {
        self.networks.as_ref().map_or_else(Vec::new, |networks| networks.read(image))
    }

    /// The same of each of `images`.
    fn read_all(&self, images: &[RgbImage]) -> Vec<Vec<Line>> {
        match &self.networks {
            Some(networks) => networks.read_all(images),
            None => vec![Vec::new(); images.len()],
        }
    }

    /// The scores of images in which these lines were `read`; in plans nothing is.
    fn judge(&self, read: &[Vec<Line>], prompts: &[&Prompt]) -> Result<Vec<Score>> {
        if self.networks.as_ref().is_none_or(|networks| networks.device.is_plan()) {
            return Ok(vec![Score::default(); read.len()]);
        }
        let judge = |(lines, prompt): (&Vec<Line>, &&Prompt)| Ok(Score::of(nearness(lines, &target(&prompt.text)?)));
        read.iter().zip(prompts).map(judge).collect()
    }
}

/// Lines of text in a picture that are not read yet.
struct Found {
    quads: Vec<Quad>,
    batches: Vec<Batch>,
}

impl Networks {
    fn read(&self, image: &RgbImage) -> Vec<Line> {
        let found = self.find(image, &Map::of(&self.map(image)));
        let logits: Vec<Vec<f32>> = self.logits(&found).iter().map(Tensor::to_host).collect();
        recognise::lines(&found.quads, &found.batches, &logits, &self.alphabet)
    }

    /// What [`Map`] is made of.
    fn map(&self, image: &RgbImage) -> Tensor {
        self.detector.forward(&detect::pixels(image, self.channels, &self.device))
    }

    /// Where there is text, by the map.
    fn find(&self, image: &RgbImage, map: &Map) -> Found {
        let quads = detect::quads(map, image);
        Found { batches: recognise::batches(image, &quads, self.channels), quads }
    }

    fn logits(&self, found: &Found) -> Vec<Tensor> {
        found.batches.iter().map(|batch| batch.logits(&self.recogniser, &self.device)).collect()
    }

    fn read_all(&self, images: &[RgbImage]) -> Vec<Vec<Line>> {
        match self.device {
            Device::Cpu => images.par_iter().map(|image| self.read(image)).collect(),
            Device::Gpu(_) if !self.device.is_plan() => self.read_by_turns(images),
            Device::Gpu(_) | Device::Plan(_) => images.iter().map(|image| self.planned(image)).collect(),
        }
    }

    /// The networks run for all pictures, launched by one thread; what lies between is done for all pictures at once.
    fn read_by_turns(&self, images: &[RgbImage]) -> Vec<Vec<Line>> {
        let maps: Vec<Tensor> = images.iter().map(|image| self.map(image)).collect();
        let maps: Vec<Map> = maps.iter().map(Map::of).collect();
        let found: Vec<Found> = images.par_iter().zip(&maps).map(|(image, map)| self.find(image, map)).collect();
        let logits: Vec<Vec<Tensor>> = found.iter().map(|found| self.logits(found)).collect();
        let to_host = |logits: &Vec<Tensor>| logits.iter().map(Tensor::to_host).collect::<Vec<_>>();
        let logits: Vec<Vec<Vec<f32>>> = logits.iter().map(to_host).collect();
        let lines = |(found, logits): (&Found, &Vec<Vec<f32>>)| {
            recognise::lines(&found.quads, &found.batches, logits, &self.alphabet)
        };
        found.par_iter().zip(&logits).map(lines).collect()
    }

    /// What reading a picture takes that has one batch of lines.
    fn planned(&self, image: &RgbImage) -> Vec<Line> {
        self.map(image).to_host();
        let [right, below] = [image.width, image.height].map(|n| n as f32 - 1.0);
        let quads = vec![[[0.0, 0.0], [right, 0.0], [right, below], [0.0, below]]; recognise::BATCH];
        let batches = recognise::batches(image, &quads, self.channels);
        self.logits(&Found { quads, batches }).iter().for_each(|logits| drop(logits.to_host()));
        Vec::new()
    }
}

impl Reward for Ocr {
    fn name(&self) -> &'static str {
        "ocr"
    }

    fn check(&self, prompts: &PromptSet) -> Result<()> {
        prompts.check(|p| target(&p.text).map(|_| ()))
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        self.judge(&self.read_all(images.pictures()), prompts)
    }

    /// What was read: `[{quad, text, confidence}]`.
    fn explain(&self, images: &Images, prompts: &[&Prompt]) -> Result<Option<Vec<(Score, Value)>>> {
        let read = self.read_all(images.pictures());
        let line = |l: &Line| json!({"quad": l.quad, "text": l.text, "confidence": l.confidence});
        let shown = read.iter().map(|lines| lines.iter().map(line).collect());
        Ok(Some(self.judge(&read, prompts)?.into_iter().zip(shown).collect()))
    }
}

/// What the prompt wants to be read: what is between its first two double quotes, or behind an only one.
///
/// # Errors
/// If there is nothing.
fn target(prompt: &str) -> Result<String> {
    let quoted =
        prompt.split('"').nth(1).context("ocr needs the words to be read in double quotes, and the prompt has none")?;
    let target = plain(quoted);
    if target.is_empty() {
        bail!("ocr needs the words to be read in double quotes, and the prompt has nothing between them");
    }
    Ok(target)
}

/// [`likeness`] of all `lines` together.
fn nearness(lines: &[Line], target: &str) -> f64 {
    let shown: String = lines.iter().map(|line| line.text.as_str()).collect();
    likeness(&shown, target)
}

/// Without spaces, in small letters.
fn plain(text: &str) -> String {
    text.replace(' ', "").to_lowercase()
}

/// 1 if `shown` holds `target`, which is [plain]; else less the changes that make one of the other, over the length of
/// `target`; at least 0.
fn likeness(shown: &str, target: &str) -> f64 {
    let shown = plain(shown);
    let length = target.chars().count();
    let changes = if shown.contains(target) { 0 } else { strsim::levenshtein(&shown, target).min(length) };
    1.0 - changes as f64 / length as f64
}

impl Channels {
    /// The pixels of `image` in this order.
    fn of(self, image: &RgbImage) -> impl Iterator<Item = [u8; 3]> {
        let order = match self {
            Self::Rgb => [0, 1, 2],
            Self::Bgr => [2, 1, 0],
        };
        image.data.as_chunks::<3>().0.iter().map(move |pixel| order.map(|c| pixel[c]))
    }
}
