//! What lines of text say: what PaddleOCR does before and after its recogniser.

use std::path::Path;

use anyhow::{Result, bail};

use super::detect::{Quad, distance};
use super::{Channels, Line};
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::io::read;
use crate::models::ppocr::Recogniser;
use crate::rewards::opencv::{bilinear, straightened};

/// Crops that are recognised together.
pub(super) const BATCH: usize = 6;
/// Width over height of the input, at least.
const SQUATTEST: f64 = 320.0 / 48.0;
/// Height over width from which on a crop is turned.
const UPRIGHT: f64 = 1.5;
/// Confidence of a line, at least.
const SURE: f32 = 0.5;

/// What every class but the first, which is none, stands for.
pub(super) struct Alphabet(Vec<char>);

impl Alphabet {
    /// The characters in `path`, one a line, and the space that PaddleOCR puts behind them.
    ///
    /// # Errors
    /// If the file cannot be read, a line is not one character, or there are not as many as the network tells apart.
    pub fn load(path: &Path, classes: usize) -> Result<Self> {
        let mut characters = Vec::new();
        for (i, line) in read::text(path)?.lines().enumerate() {
            let mut rest = line.chars();
            match (rest.next(), rest.next()) {
                (Some(one), None) => characters.push(one),
                _ => bail!("{}:{}: found '{line}', expected one character", path.display(), i + 1),
            }
        }
        characters.push(' ');
        let found = characters.len() + 1;
        if found != classes {
            bail!(
                "{}: {} characters, expected {}: rec.safetensors has {classes} classes, one of them none and one a space",
                path.display(),
                found - 2,
                classes.saturating_sub(2)
            );
        }
        Ok(Self(characters))
    }
}

/// Crops of a picture that are recognised together.
pub(super) struct Batch {
    /// Which boxes they were cut from.
    boxes: Vec<usize>,
    /// Of the input.
    width: usize,
    /// `[crops, 48, width, 3]`.
    pixels: Vec<f32>,
}

/// What lies in the boxes `quads` of `image`, as the network takes it.
pub(super) fn batches(image: &RgbImage, quads: &[Quad], channels: Channels) -> Vec<Batch> {
    let crops: Vec<RgbImage> = quads.iter().map(|quad| crop(image, quad)).collect();
    let ratio = |i: usize| crops[i].width as f64 / crops[i].height as f64;
    let mut order: Vec<usize> = (0..crops.len()).collect();
    order.sort_by(|i, j| ratio(*i).total_cmp(&ratio(*j)));
    let batch = |boxes: &[usize]| {
        let widest = boxes.iter().fold(SQUATTEST, |most, i| most.max(ratio(*i)));
        let width = (Recogniser::HEIGHT as f64 * widest) as usize;
        let pixels = boxes.iter().flat_map(|i| input(&crops[*i], width, channels)).collect();
        Batch { boxes: boxes.to_vec(), width, pixels }
    };
    order.chunks(BATCH).map(batch).collect()
}

impl Batch {
    /// What the network says of the crops, `[crops, steps, classes]`.
    pub fn logits(&self, network: &Recogniser, device: &Device) -> Tensor {
        let shape = [self.boxes.len(), Recogniser::HEIGHT, self.width, 3];
        network.forward(&Tensor::from_slice(device, &self.pixels, &shape))
    }
}

/// What stands in the boxes `quads`, of whose batches the network has said `logits`, without what is too unsure.
pub(super) fn lines(quads: &[Quad], batches: &[Batch], logits: &[Vec<f32>], alphabet: &Alphabet) -> Vec<Line> {
    let mut lines: Vec<Option<Line>> = vec![None; quads.len()];
    for (Batch { boxes, .. }, logits) in batches.iter().zip(logits) {
        for (i, logits) in boxes.iter().zip(logits.chunks(logits.len() / boxes.len())) {
            let (text, confidence) = decode(logits, alphabet);
            lines[*i] = (confidence >= SURE).then(|| Line { quad: quads[*i], text, confidence });
        }
    }
    lines.into_iter().flatten().collect()
}

/// What lies in `quad`, upright text turned to the left.
pub(super) fn crop(image: &RgbImage, quad: &Quad) -> RgbImage {
    let side = |a: usize, b: usize, c: usize, d: usize| {
        (distance(quad[a], quad[b]).max(distance(quad[c], quad[d])) as usize).max(1)
    };
    let crop = straightened(image, quad, side(0, 1, 2, 3), side(0, 3, 1, 2));
    if crop.height as f64 / crop.width as f64 >= UPRIGHT { turned(&crop) } else { crop }
}

/// A quarter turn to the left.
fn turned(image: &RgbImage) -> RgbImage {
    let (width, height) = (image.height, image.width);
    let pixel = |i: usize| image.pixel(image.width - 1 - i / width, i % width);
    RgbImage { width, height, data: (0..width * height).flat_map(pixel).collect() }
}

/// A crop as the network takes it, `[48, width, 3]`: its height is fitted, what is left at the right is 0.
fn input(crop: &RgbImage, width: usize, channels: Channels) -> Vec<f32> {
    let height = Recogniser::HEIGHT;
    let fitted = (height as f64 * (crop.width as f64 / crop.height as f64)).ceil() as usize;
    let image = bilinear(crop, fitted.min(width), height);
    let mut out = vec![0.0; height * width * 3];
    let row = image.width * 3;
    for (i, pixel) in channels.of(&image).enumerate() {
        let at = i / image.width * width * 3 + i * 3 % row;
        let values = pixel.map(|v| (f32::from(v) / 255.0 - 0.5) / 0.5);
        out[at..at + 3].copy_from_slice(&values);
    }
    out
}

/// The likeliest class of every step without repetitions and nones (CTC), and the mean probability of what is kept; 0 of
/// nothing.
fn decode(logits: &[f32], alphabet: &Alphabet) -> (String, f32) {
    let classes = alphabet.0.len() + 1;
    let (mut text, mut sum, mut before) = (String::new(), 0.0f32, 0);
    for step in logits.chunks_exact(classes) {
        let best = (1..classes).fold(0, |best, i| if step[i] > step[best] { i } else { best });
        if best != 0 && best != before {
            text.push(alphabet.0[best - 1]);
            sum += 1.0 / step.iter().map(|v| (v - step[best]).exp()).sum::<f32>();
        }
        before = best;
    }
    let count = text.chars().count();
    (text, sum / count.max(1) as f32)
}
