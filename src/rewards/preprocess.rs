//! How a picture becomes what a CLIP is given: resized, cut or surrounded, normalised. The programs that rewards come from do it
//! in ways that are not equal.

mod floats;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::Images;
use crate::device::Tensor;
use crate::io::read_json;
use crate::ops::resample::{self, Axis};
use crate::ops::{normalise, resize};

pub use floats::Floats;

/// Mean and deviation of each channel in OpenAI's training data, on the scale 0 to 1.
const OPENAI: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);

/// The steps of one reward.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// On 8 bits.
    Bytes(Preprocess),
    /// On what was decoded.
    Floats(Floats),
}

impl Pixels {
    /// What a model is given of the pictures `range`, `[n, 3, size, size]`.
    pub fn of(&self, images: &Images, range: Range<usize>) -> Tensor {
        match self {
            Self::Bytes(steps) => steps.run(&images.bytes().slice(range)),
            Self::Floats(steps) => steps.run(&images.planes(range)),
        }
    }
}

/// To what size a picture is brought before it is cropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resize {
    ShortestEdge(usize),
    LongestEdge(usize),
    Exact { height: usize, width: usize },
}

/// Where the middle of a picture is that has an odd margin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Middle {
    /// Half a pixel is left out (transformers).
    Truncated,
    /// Half a pixel goes to the even neighbour (torchvision).
    Rounded,
}

/// The steps on 8 bits, as Pillow resizes pictures: those of one `preprocessor_config.json`, or of a program without such a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    resize: Resize,
    /// Height and width.
    crop: (usize, usize),
    middle: Middle,
    mean: [f64; 3],
    std: [f64; 3],
}

impl Preprocess {
    /// OpenAI's: shortest edge to `size`, the middle `size` x `size` of that, OpenAI's mean and deviation.
    pub fn openai(size: usize) -> Self {
        let (mean, std) = OPENAI;
        Self { resize: Resize::ShortestEdge(size), crop: (size, size), middle: Middle::Truncated, mean, std }
    }

    /// [`Preprocess::openai`] with the middle where torchvision finds it, as in open_clip and ImageReward.
    pub fn open_clip(size: usize) -> Self {
        Self { middle: Middle::Rounded, ..Self::openai(size) }
    }

    /// The `hpsv2` package's: longest edge to `size`, zeros around, OpenAI's mean and deviation.
    pub fn padded(size: usize) -> Self {
        Self { resize: Resize::LongestEdge(size), ..Self::openai(size) }
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
                _ => bail!("without 'do_center_crop' key 'size' must give height and width"),
            },
            _ => size(config, "crop_size")?.unwrap_or(resize).least(),
        };
        let (height, width) = resize.least();
        if crop.0 > height || crop.1 > width {
            bail!("key 'crop_size' is {}x{}, larger than the resized picture ({height}x{width})", crop.0, crop.1);
        }
        let mean = channels(config, "image_mean")?.unwrap_or(OPENAI.0);
        let std = channels(config, "image_std")?.unwrap_or(OPENAI.1);
        if let Some(v) = std.iter().find(|v| **v <= 0.0) {
            bail!("key 'image_std' holds {v}, expected positive numbers");
        }
        Ok(Self { resize, crop, middle: Middle::Truncated, mean, std })
    }

    /// Pictures `[b, h, w, 3]` of bytes as `[b, 3, height, width]`, normalised.
    pub fn run(&self, images: &Tensor) -> Tensor {
        let sides = [images.dim(1), images.dim(2)];
        let [height, width] = match self.resize {
            Resize::Exact { height, width } => [height, width],
            Resize::ShortestEdge(edge) => shortest_edge(sides, edge),
            Resize::LongestEdge(edge) => longest_edge(sides, edge),
        };
        let resized = resize::bicubic(images, height, width);
        let crop = [self.crop.0, self.crop.1];
        if let Resize::LongestEdge(edge) = self.resize {
            let planes = normalise::forward(&resized, [0, 0], [height, width], [0.0; 3], [1.0; 3]);
            let [rows, columns] = [height, width].map(|length| floats::pad(Axis::same(length), edge));
            return resample::forward(&planes, &rows, &columns, self.mean, self.std);
        }
        let first = |length: usize, size: usize| match self.middle {
            Middle::Truncated => (length - size) / 2,
            Middle::Rounded => floats::middle(length, size).start,
        };
        let corner = [first(height, crop[0]), first(width, crop[1])];
        normalise::forward(&resized, corner, crop, self.mean, self.std)
    }
}

impl Resize {
    /// Height and width at least.
    fn least(self) -> (usize, usize) {
        match self {
            Self::ShortestEdge(edge) | Self::LongestEdge(edge) => (edge, edge),
            Self::Exact { height, width } => (height, width),
        }
    }
}

/// The sides of a picture whose shortest edge is brought to `edge`; the other is truncated, not rounded.
fn shortest_edge(sides: [usize; 2], edge: usize) -> [usize; 2] {
    let shortest = sides[0].min(sides[1]);
    sides.map(|side| edge * side / shortest)
}

/// The sides of a picture whose longest edge is brought to `edge`; the other is rounded, half to even, and at least 1.
fn longest_edge(sides: [usize; 2], edge: usize) -> [usize; 2] {
    let scale = edge as f64 / sides[0].max(sides[1]) as f64;
    sides.map(|side| ((side as f64 * scale).round_ties_even() as usize).clamp(1, edge))
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
