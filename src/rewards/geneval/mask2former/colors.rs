//! What colour an object is: a picture of it alone is compared with what people would say of each colour (zero-shot
//! classification by CLIP ViT-L/14, as the benchmark does it).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::Result;

use super::masks::Object;
use crate::data::Color;
use crate::device::{Device, Tensor};
use crate::io::image::RgbImage;
use crate::models::clip::Clip;
use crate::models::tokenizer::Tokenizer;
use crate::ops::copy;
use crate::rewards::preprocess::Preprocess;

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
    /// The classifier over a model.
    pub fn new(clip: Clip, tokenizer: Tokenizer, preprocess: Preprocess) -> Self {
        Self { clip, tokenizer, preprocess, known: Mutex::default() }
    }

    /// The colour of each of the objects in `image`, which are each of the class named with it.
    ///
    /// # Errors
    /// If a class's name cannot be made into tokens.
    pub fn tell(&self, image: &RgbImage, objects: &[(&Object, &str)]) -> Result<Vec<Color>> {
        let mut colors = Vec::with_capacity(objects.len());
        for some in objects.chunks(BATCH) {
            let pixels: Vec<Tensor> = some.iter().map(|(object, _)| self.ready(image, object)).collect();
            let embeds = self.clip.image_embeds(&copy::concat(&pixels.iter().collect::<Vec<_>>()));
            let rows = embeds.to_host();
            for (row, (_, class)) in rows.chunks_exact(embeds.width()).zip(some) {
                colors.push(nearest(row, &*self.directions(class)?));
            }
        }
        Ok(colors)
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

    /// Where the model is.
    pub fn device(&self) -> Device {
        self.clip.device()
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

/// The colour whose direction is nearest; the first of equals.
fn nearest(embedding: &[f32], directions: &[Vec<f64>]) -> Color {
    let cosine = |direction: &Vec<f64>| embedding.iter().zip(direction).map(|(e, d)| f64::from(*e) * d).sum::<f64>();
    let mut best = (f64::NEG_INFINITY, Color::ALL[0]);
    for (color, direction) in Color::ALL.iter().zip(directions) {
        let like = cosine(direction);
        if like > best.0 {
            best = (like, *color);
        }
    }
    best.1
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
    fn the_nearest_direction_is_the_colour_and_of_equals_the_first() {
        let mut directions = vec![vec![0.0, 1.0]; 10];
        assert_eq!(nearest(&[0.3, 0.9], &directions), Color::Red);
        directions[7] = vec![0.6, 0.8];
        assert_eq!(nearest(&[0.3, 0.9], &directions), Color::Red);
        assert_eq!(nearest(&[0.5, 0.5], &directions), Color::Brown);
        assert_eq!(sentences("red", "stop sign")[1], "a photo of a red-colored stop sign");
    }
}
