//! What colour an object is: a picture of it alone is compared with what people would say of each colour (zero-shot
//! classification by CLIP ViT-L/14, as the benchmark does it).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;

use super::masks::Object;
use crate::data::Color;
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::clip::{Clip, HiddenAct, Options};
use crate::models::tokenizer::Tokenizer;
use crate::ops::copy;
use crate::rewards::Dtype;
use crate::rewards::preprocess::Preprocess;
use crate::rewards::similarity::{self, Maker};

/// What stands for everything that is not the object: #999.
const AROUND: u8 = 0x99;
/// Pictures of objects that go through the model at a time; what they give does not depend on it.
const BATCH: usize = 16;

/// The classifier.
pub struct Colors {
    clip: Clip,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    /// For every class seen so far, the direction of each colour.
    known: Mutex<HashMap<String, Arc<Vec<Vec<f64>>>>>,
}

impl Colors {
    /// The classifier over the model at `path`, in the layout of transformers or of open_clip, whose non-linearity is `activation`
    /// whatever the model says.
    ///
    /// # Errors
    /// Names the file that is missing or not what was expected.
    pub fn load(path: &Path, activation: HiddenAct, dtype: Dtype, device: &Device) -> Result<Self> {
        let options = Options { activation: Some(activation), ..similarity::options(path, dtype) };
        let clip = Clip::open(path, options, device)?;
        let preprocess = Preprocess::open_clip(clip.config().vision.image_size);
        let tokenizer = similarity::tokenizer(path, Maker::Transformers, &clip)?;
        Ok(Self { clip, tokenizer, preprocess, known: Mutex::default() })
    }

    /// The colour of each of the objects in `image`, which are each of the class named with it.
    ///
    /// # Errors
    /// If a class's name cannot be made into tokens.
    pub fn tell(&self, image: &RgbImage, objects: &[(&Object, &str)]) -> Result<Vec<Color>> {
        Ok(self.likenesses(image, objects)?.iter().map(|likeness| likest(likeness)).collect())
    }

    /// How like each of [`Color::ALL`] each object is.
    fn likenesses(&self, image: &RgbImage, objects: &[(&Object, &str)]) -> Result<Vec<Vec<f64>>> {
        let mut all = Vec::with_capacity(objects.len());
        for some in objects.chunks(BATCH) {
            let pixels: Vec<Tensor> = some.iter().map(|(object, _)| self.ready(image, object)).collect();
            let embeds = self.clip.image_embeds(&copy::concat(&pixels.iter().collect::<Vec<_>>()));
            let rows = embeds.to_host();
            for (row, (_, class)) in rows.chunks_exact(embeds.width()).zip(some) {
                all.push(likeness(row, &self.directions(class)?));
            }
        }
        Ok(all)
    }

    /// The object alone, as the model takes it.
    fn ready(&self, image: &RgbImage, object: &Object) -> Tensor {
        let cut = alone(image, object);
        let bytes = Tensor::from_bytes(&self.clip.device(), &cut.data, &[1, cut.height, cut.width, 3]);
        self.preprocess.run(&bytes)
    }

    /// The directions of all colours of objects called `class`, of length 1.
    fn directions(&self, class: &str) -> Result<Arc<Vec<Vec<f64>>>> {
        if let Some(known) = self.known.lock().expect("no panic while it is held").get(class) {
            return Ok(known.clone());
        }
        let of = |color: &Color| -> Result<Vec<f64>> {
            let texts = sentences(color.name(), class);
            let most = self.clip.config().text.max_position_embeddings;
            let length = self.tokenizer.max_length().map_or(most, |n| n.min(most));
            let mut sum = Vec::new();
            for text in texts {
                let ids = self.tokenizer.encode(&text, length)?.ids;
                let direction = unit(self.clip.text_embeds(&[ids]).to_host().into_iter().map(f64::from).collect());
                sum.resize(direction.len(), 0.0);
                sum.iter_mut().zip(direction).for_each(|(s, d)| *s += d);
            }
            Ok(unit(sum))
        };
        let all: Arc<Vec<Vec<f64>>> = Arc::new(Color::ALL.iter().map(of).collect::<Result<_>>()?);
        self.known.lock().expect("no panic while it is held").insert(class.into(), all.clone());
        Ok(all)
    }
}

/// What people would say of an object of that colour.
fn sentences(color: &str, class: &str) -> [String; 3] {
    [
        format!("a photo of a {color} {class}"),
        format!("a photo of a {color}-colored {class}"),
        format!("a photo of a {color} object"),
    ]
}

/// How near the embedding of a picture is to each direction: a hundred times the cosine.
fn likeness(embedding: &[f32], directions: &[Vec<f64>]) -> Vec<f64> {
    let embedding = unit(embedding.iter().map(|v| f64::from(*v)).collect());
    directions.iter().map(|d| 100.0 * d.iter().zip(&embedding).map(|(d, e)| d * e).sum::<f64>()).collect()
}

/// The colour that is likest; the first of equals.
fn likest(likeness: &[f64]) -> Color {
    let mut best = 0;
    for (i, like) in likeness.iter().enumerate() {
        if *like > likeness[best] {
            best = i;
        }
    }
    Color::ALL[best]
}

fn unit(v: Vec<f64>) -> Vec<f64> {
    let length = v.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    v.into_iter().map(|x| x / length).collect()
}

/// The object within its bounds, everything else grey.
fn alone(image: &RgbImage, object: &Object) -> RgbImage {
    let [left, top, right, bottom] = object.bounds;
    let pixel = |x: usize, y: usize| if object.mask[y * image.width + x] { image.pixel(x, y) } else { [AROUND; 3] };
    let data = (top..bottom).flat_map(|y| (left..right).flat_map(move |x| pixel(x, y))).collect();
    RgbImage { width: right - left, height: bottom - top, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::read_json;
    use crate::ops::testing::fixture;

    #[test]
    fn an_object_is_cut_out_with_grey_around_it() {
        let image = RgbImage { width: 3, height: 2, data: (1..=18).collect() };
        let mask = vec![false, true, false, false, true, true];
        let object = Object { class: 0, score: 1.0, bounds: [1, 0, 3, 2], mask };
        let cut = alone(&image, &object);
        assert_eq!((cut.width, cut.height), (2, 2));
        assert_eq!(cut.data, [4, 5, 6, 153, 153, 153, 13, 14, 15, 16, 17, 18]);
    }

    #[test]
    fn the_likest_is_the_colour_and_of_equals_the_first() {
        let mut directions = vec![vec![0.0, 1.0]; 10];
        assert_eq!(likest(&likeness(&[0.3, 0.9], &directions)), Color::Red);
        directions[7] = vec![0.8, 0.6];
        assert_eq!(likest(&likeness(&[0.3, 0.9], &directions)), Color::Red);
        assert_eq!(likest(&likeness(&[0.5, 0.5], &directions)), Color::Brown);
        assert_eq!(sentences("red", "stop sign")[1], "a photo of a red-colored stop sign");
    }

    #[derive(serde::Deserialize)]
    struct Case {
        class: String,
        #[serde(rename = "box")]
        bounds: [usize; 4],
        logits: Vec<f64>,
        color: String,
    }

    #[derive(serde::Deserialize)]
    struct Cases {
        size: [usize; 2],
        objects: Vec<Case>,
    }

    /// The fixture is the work of Pillow, torchvision and transformers.
    #[test]
    fn colours_are_told_as_the_benchmark_tells_them() {
        let Cases { size: [height, width], objects } = read_json(&fixture("geneval/colors.json")).unwrap();
        let pixel = |y: usize, x: usize| [x * 3, y * 5, x * y / 7].map(|v| v as u8);
        let data = (0..height * width).flat_map(|i| pixel(i / width, i % width)).collect();
        let image = RgbImage { width, height, data };
        let ellipse = |[left, top, right, bottom]: [usize; 4]| {
            let inside = |i: usize| {
                let (x, y) = (i % width, i / width);
                let off =
                    |at: usize, from: usize, to: usize| (at as f64 - (from + to - 1) as f64 / 2.0) / (to - from) as f64;
                let within = (left..right).contains(&x) && (top..bottom).contains(&y);
                within && off(x, left, right).powi(2) + off(y, top, bottom).powi(2) <= 0.25
            };
            (0..height * width).map(inside).collect()
        };
        let object = |case: &Case| Object { class: 0, score: 1.0, bounds: case.bounds, mask: ellipse(case.bounds) };
        let colors = Colors::load(&built_in(), HiddenAct::QuickGelu, Dtype::F32, &Device::Cpu).unwrap();
        let seen: Vec<Object> = objects.iter().map(object).collect();
        let asked: Vec<(&Object, &str)> = seen.iter().zip(&objects).map(|(o, case)| (o, case.class.as_str())).collect();
        let told = colors.tell(&image, &asked).unwrap();
        for ((got, color), case) in colors.likenesses(&image, &asked).unwrap().iter().zip(told).zip(&objects) {
            let apart = got.iter().zip(&case.logits).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
            assert!(apart < 2e-3, "{}: off by {apart:e}", case.class);
            assert_eq!(color.name(), case.color, "{}", case.class);
        }
        // The switch changes what is told, and one object alone is told as among others.
        let other = Colors::load(&built_in(), HiddenAct::Gelu, Dtype::F32, &Device::Cpu).unwrap();
        let (a, b) = (colors.likenesses(&image, &asked).unwrap(), other.likenesses(&image, &asked).unwrap());
        assert!(a.iter().flatten().zip(b.iter().flatten()).any(|(a, b)| (a - b).abs() > 1e-3));
        assert_eq!(colors.likenesses(&image, &asked[2..3]).unwrap()[0], a[2]);
    }

    fn built_in() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-clip")
    }
}
