//! How CLIP's image processor turns a picture into numbers: resized as Pillow does it, cropped, normalised.

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use rayon::prelude::*;
use serde_json::Value;

use crate::device::Tensor;
use crate::io::image::RgbImage;
use crate::io::read_json;

/// Mean and deviation of each channel in OpenAI's training data, on the scale 0 to 1.
const OPENAI: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);

/// Bits after the point of Pillow's 8-bit resampling weights.
const PRECISION: u32 = 32 - 8 - 2;

/// To what size a picture is brought before it is cropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resize {
    ShortestEdge(usize),
    Exact { height: usize, width: usize },
}

/// The steps of one `preprocessor_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    resize: Resize,
    /// Height and width.
    crop: (usize, usize),
    mean: [f64; 3],
    std: [f64; 3],
}

impl Preprocess {
    /// OpenAI's: shortest edge to `size`, the middle `size` x `size` of that, OpenAI's mean and deviation.
    pub fn openai(size: usize) -> Self {
        Self { resize: Resize::ShortestEdge(size), crop: (size, size), mean: OPENAI.0, std: OPENAI.1 }
    }

    /// Reads `preprocessor_config.json` in `folder`. Without one it is [`Preprocess::openai`] at `image_size`, as the
    /// model's `config.json` has it.
    ///
    /// # Errors
    /// Names file, key and what was expected, also if the result would not be `image_size` pixels a side.
    pub fn load(folder: &Path, image_size: usize) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        if !path.exists() {
            return Ok(Self::openai(image_size));
        }
        let steps = Self::parse(&read_json(&path)?).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let (height, width) = steps.crop;
        if (height, width) != (image_size, image_size) {
            bail!("{}: gives {height}x{width} pixels, the model takes {image_size}x{image_size}", path.display());
        }
        Ok(steps)
    }

    fn parse(config: &Value) -> Result<Self> {
        for (key, want) in [("do_resize", true), ("do_rescale", true), ("do_normalize", true), ("do_pad", false)] {
            if config.get(key).and_then(Value::as_bool).unwrap_or(want) != want {
                bail!("key '{key}' is {}, only {want} is supported", !want);
            }
        }
        // 3 is bicubic in Pillow.
        if let Some(v) = config.get("resample").filter(|v| v.as_u64() != Some(3)) {
            bail!("key 'resample' is {v}, only 3 (bicubic) is supported");
        }
        if let Some(v) = config.get("rescale_factor").filter(|v| (v.as_f64().unwrap_or(0.0) * 255.0 - 1.0).abs() > 1e-9)
        {
            bail!("key 'rescale_factor' is {v}, only 1/255 is supported");
        }
        let resize = match size(config, "size")? {
            None => Resize::ShortestEdge(224),
            Some(size) => size,
        };
        let crop = match config.get("do_center_crop").and_then(Value::as_bool) {
            Some(false) => match resize {
                Resize::Exact { height, width } => (height, width),
                Resize::ShortestEdge(_) => bail!("without 'do_center_crop' key 'size' must give height and width"),
            },
            _ => match size(config, "crop_size")?.unwrap_or(resize) {
                Resize::ShortestEdge(edge) => (edge, edge),
                Resize::Exact { height, width } => (height, width),
            },
        };
        let (height, width) = match resize {
            Resize::ShortestEdge(edge) => (edge, edge),
            Resize::Exact { height, width } => (height, width),
        };
        if crop.0 > height || crop.1 > width {
            bail!("key 'crop_size' is {}x{}, larger than the resized picture ({height}x{width})", crop.0, crop.1);
        }
        let mean = channels(config, "image_mean")?.unwrap_or(OPENAI.0);
        let std = channels(config, "image_std")?.unwrap_or(OPENAI.1);
        if let Some(v) = std.iter().find(|v| **v <= 0.0) {
            bail!("key 'image_std' holds {v}, expected positive numbers");
        }
        Ok(Self { resize, crop, mean, std })
    }

    /// The pictures as `[images, 3, height, width]`, normalised.
    pub fn run(&self, images: &[RgbImage]) -> Tensor {
        let (height, width) = self.crop;
        let table = self.table();
        let mut out = Tensor::scratch(&[images.len(), 3, height, width]);
        out.data_mut().par_chunks_mut((3 * height * width).max(1)).zip(images).for_each(|(out, image)| {
            let image = self.crop_of(image);
            for (c, plane) in out.chunks_mut(height * width).enumerate() {
                for (value, pixel) in plane.iter_mut().zip(image.data.chunks(3)) {
                    *value = table[c][usize::from(pixel[c])];
                }
            }
        });
        out
    }

    /// The normalised value of each byte in each channel.
    fn table(&self) -> [[f32; 256]; 3] {
        [0, 1, 2].map(|c| std::array::from_fn(|byte| ((byte as f64 / 255.0 - self.mean[c]) / self.std[c]) as f32))
    }

    fn crop_of(&self, image: &RgbImage) -> RgbImage {
        let (height, width) = match self.resize {
            Resize::Exact { height, width } => (height, width),
            Resize::ShortestEdge(edge) => {
                // The processor truncates the long edge, it does not round.
                let short = image.height.min(image.width);
                (edge * image.height / short, edge * image.width / short)
            }
        };
        let resized = resize_bicubic(image, height, width);
        let (top, left) = ((height - self.crop.0) / 2, (width - self.crop.1) / 2);
        let rows = resized.data.chunks(width * 3).skip(top).take(self.crop.0);
        let data = rows.flat_map(|row| &row[left * 3..(left + self.crop.1) * 3]).copied().collect();
        RgbImage { width: self.crop.1, height: self.crop.0, data }
    }
}

/// A size as it is written in the files of three generations: `224`, `{"shortest_edge": 224}` or
/// `{"height": 224, "width": 224}`.
fn size(config: &Value, key: &str) -> Result<Option<Resize>> {
    let Some(value) = config.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    let number = |v: &Value| v.as_u64().filter(|n| (1..=65536).contains(n)).map(|n| n as usize);
    let of = |name: &str| value.get(name).and_then(number);
    let size = match (number(value), of("shortest_edge"), of("height"), of("width")) {
        (Some(edge), ..) | (None, Some(edge), ..) => Resize::ShortestEdge(edge),
        (None, None, Some(height), Some(width)) => Resize::Exact { height, width },
        _ => bail!(
            "key '{key}' is {value}, expected a number, {{\"shortest_edge\": n}} or {{\"height\": n, \"width\": n}}"
        ),
    };
    Ok(Some(size))
}

fn channels(config: &Value, key: &str) -> Result<Option<[f64; 3]>> {
    let Some(value) = config.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|a| a.iter().map(Value::as_f64).collect());
    match numbers.and_then(|n| n.try_into().ok()) {
        Some(three) => Ok(Some(three)),
        None => bail!("key '{key}' is {value}, expected three numbers"),
    }
}

/// `image` in another size, as Pillow's `resize((width, height), BICUBIC)`: a = -0.5, the kernel widened when
/// shrinking, fixed-point weights, and rounding to 8 bits after each of the two passes (`libImaging/Resample.c`).
pub fn resize_bicubic(image: &RgbImage, height: usize, width: usize) -> RgbImage {
    // Columns first where that saves work, as Pillow does from version 13 on. A square picture is the same in all.
    let (lost_rows, lost_columns) = (image.height as i64 - height as i64, image.width as i64 - width as i64);
    if lost_rows > 0 && lost_rows > 2 * lost_columns {
        to_width(&to_height(image, height), width)
    } else {
        to_height(&to_width(image, width), height)
    }
}

fn to_width(image: &RgbImage, width: usize) -> RgbImage {
    if width == image.width {
        return image.clone();
    }
    let taps = taps(image.width, width);
    let rows = image.data.chunks(image.width * 3);
    let data = rows.flat_map(|row| taps.iter().flat_map(|t| t.apply(row, 3))).collect();
    RgbImage { width, height: image.height, data }
}

fn to_height(image: &RgbImage, height: usize) -> RgbImage {
    if height == image.height {
        return image.clone();
    }
    let row = image.width * 3;
    let mut data = Vec::with_capacity(height * row);
    for t in taps(image.height, height) {
        (0..image.width).for_each(|x| data.extend(t.apply(&image.data[x * 3..], row)));
    }
    RgbImage { width: image.width, height, data }
}

/// The inputs of one output, from `first` on, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    /// The three channels, of pixels that lie `stride` bytes apart.
    fn apply(&self, data: &[u8], stride: usize) -> [u8; 3] {
        let mut sums = [1i32 << (PRECISION - 1); 3];
        for (i, weight) in self.weights.iter().enumerate() {
            let at = (self.first + i) * stride;
            for (sum, byte) in sums.iter_mut().zip(&data[at..at + 3]) {
                *sum += i32::from(*byte) * weight;
            }
        }
        sums.map(|s| (s >> PRECISION).clamp(0, 255) as u8)
    }
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = 2.0 * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - reach + 0.5) as i64).max(0) as usize;
        let last = ((centre + reach + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..last).map(|x| cubic((x as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let w = w / sum * f64::from(1 << PRECISION);
            (w + 0.5f64.copysign(w)) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(of).collect()
}

/// Keys' cubic with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
