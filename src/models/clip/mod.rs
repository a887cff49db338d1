//! CLIP (Radford et al. 2021): the text encoders of SD3.5, and the whole model that rewards compare images and prompts with,
//! in the layout of transformers or of open_clip.

mod config;
mod source;
mod text;
pub(in crate::models) mod tower;
mod vision;

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Result;

use crate::device::{DType, Device, Precision, Tensor};
use crate::io::Loader;
use crate::models::Linear;
use crate::ops::affine::{self, Affine};
use crate::ops::{copy, linear};

pub use config::{ClipConfig, HiddenAct, TextConfig, VisionConfig};
pub use text::{ClipText, ClipTextOutput};
pub use vision::Tape;

use self::source::Source;

/// Buffers that old files hold and nobody reads.
const IGNORED: &[&str] = &["embeddings.position_ids", "attn_mask"];
/// What belongs to the text tower or to both, for who wants the pictures' alone.
const TEXT: &[&str] = &["embeddings.position_ids", "attn_mask", "text_model.", "text_projection.", "logit_scale"];

/// What gradients are times while they are in f16: those to pixels are near its smallest numbers.
const F16_SCALE: f32 = 1024.0;

/// How a model is to be run, beside what its files say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What matrices are multiplied in.
    pub precision: Precision,
    /// The non-linearity in the place of the model's own.
    pub activation: Option<HiddenAct>,
}

/// Text and vision tower with projections into one space (`CLIPModel`).
pub struct Clip {
    config: ClipConfig,
    text: text::TextTower,
    text_projection: Linear,
    vision: ClipVision,
    logit_scale: Tensor,
}

/// The half of [`Clip`] that sees pictures (`CLIPVisionModelWithProjection`).
pub struct ClipVision {
    image_size: usize,
    tower: vision::VisionTower,
    projection: Linear,
}

impl Clip {
    /// As [`Clip::open`], run as it is stored.
    ///
    /// # Errors
    /// As [`Clip::open`].
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        Self::open(path, Options::default(), device)
    }

    /// The model at `path`, which is a file of weights or the folder that holds it: in the layout of transformers, sizes from
    /// `config.json` beside it or from the tensors; or in that of open_clip, sizes from the tensors and what they do not say
    /// from `open_clip_config.json` beside it. Of an outline, its shapes.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing or not as expected.
    pub fn open(path: &Path, options: Options, device: &Device) -> Result<Self> {
        let Source { file, config } = Source::open(path, options.activation)?;
        let loader = Loader::new(&file, IGNORED, device).precision(options.precision);
        let root = loader.root();
        let joint = config.projection_dim;
        let clip = Self {
            text: text::TextTower::load(&root.sub("text_model"), &config.text),
            text_projection: Linear::load(&root.sub("text_projection"), config.text.hidden_size, joint, false),
            vision: ClipVision::of(&loader, &config),
            logit_scale: root.tensor("logit_scale", &[]),
            config,
        };
        loader.finish()?;
        Ok(clip)
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.logit_scale.device()
    }

    /// What the model was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// What sees the pictures.
    pub fn vision(&self) -> &ClipVision {
        &self.vision
    }

    /// As [`ClipVision::embeds`].
    pub fn image_embeds(&self, pixels: &Tensor) -> Tensor {
        self.vision.embeds(pixels)
    }

    /// Token ids to the joint space, not normalised; returns `[b, projection]`.
    pub fn text_embeds(&self, ids: &[Vec<u32>]) -> Tensor {
        let hidden = self.text.forward(ids);
        copy::cast(&self.text_projection.forward(&self.text.pool(&hidden.last, ids)), DType::F32)
    }

    /// The logarithm of the factor on cosines, as stored.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale.to_host()[0]
    }
}

impl ClipVision {
    /// As [`Clip::open`], without what reads text.
    ///
    /// # Errors
    /// As [`Clip::open`].
    pub fn open(path: &Path, options: Options, device: &Device) -> Result<Self> {
        let Source { file, config } = Source::open(path, options.activation)?;
        let loader = Loader::new(&file, TEXT, device).precision(options.precision);
        let vision = Self::of(&loader, &config);
        loader.finish()?;
        Ok(vision)
    }

    fn of(loader: &Loader, config: &ClipConfig) -> Self {
        let root = loader.root();
        Self {
            image_size: config.vision.image_size,
            tower: vision::VisionTower::load(&root.sub("vision_model"), &config.vision),
            projection: Linear::load(
                &root.sub("visual_projection"),
                config.vision.hidden_size,
                config.projection_dim,
                false,
            ),
        }
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.projection.weight.device()
    }

    /// Height and width of the pixels it takes.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Width of the joint space.
    pub fn joint(&self) -> usize {
        self.projection.weight.dim(0)
    }

    /// Images to the joint space, not normalised. `pixels` `[b, 3, s, s]`, preprocessed; returns `[b, projection]`.
    pub fn embeds(&self, pixels: &Tensor) -> Tensor {
        let embeds = pixels.device().region(|| self.projection.forward(&self.tower.forward(pixels)));
        copy::cast(&embeds, DType::F32)
    }

    /// [`ClipVision::embeds`], and what [`ClipVision::backward`] starts from.
    pub fn kept(&self, pixels: &Tensor) -> (Tensor, Tape) {
        let (class, tape) = self.tower.kept(pixels);
        (copy::cast(&self.projection.forward(&class), DType::F32), tape)
    }

    /// The gradient to the pixels; `d` `[b, projection]` is that to the embeddings, both in single precision. The weights get
    /// none. On the way it is of the type of the activations.
    pub fn backward(&self, tape: &Tape, d: &Tensor) -> Tensor {
        let dtype = tape.activations();
        let scale = if dtype == DType::F16 { F16_SCALE } else { 1.0 };
        let times = |x: &Tensor, scale| affine::forward(x, Affine { scale, ..Affine::default() });
        let d = copy::cast(&times(d, scale), dtype);
        let mut class = d.scratch_like(&[d.dim(0), self.projection.weight.dim(1)]);
        linear::backward(&d, &self.projection.weight, None, None, None, linear::InputGrad::Overwrite(&mut class));
        times(&copy::cast(&self.tower.backward(tape, &class), DType::F32), 1.0 / scale)
    }
}
