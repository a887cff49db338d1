//! Mask2Former (Cheng et al. 2022) with a Swin backbone: a fixed number of queries, each of which finds one object, says what
//! it is and which pixels are its. In the names of transformers' `Mask2FormerForUniversalSegmentation`; files of both
//! generations of mmdetection are brought under them.

mod decoder;
mod layers;
mod pixels;
mod position;

use anyhow::{Result, bail};

use self::decoder::Decoder;
use self::pixels::PixelDecoder;
use super::names::mask2former as names;
use super::sizes::Sizes;
use super::swin::{self, Swin};
use crate::device::{Device, Precision, Tensor};
use crate::io::{Loader, TensorFile};

pub use super::names::mask2former::Layout;

/// Buffers, and what only training has.
const IGNORED: &[&str] = &["relative_position_index", "criterion.empty_weight", "encoder.swin.layernorm."];
const ENCODER: &str = "model.pixel_level_module.encoder";
const DECODER: &str = "model.pixel_level_module.decoder";
const QUERIES: &str = "model.transformer_module";
/// Levels of the pyramid that the decoders look at.
const LEVELS: usize = 3;
/// Attention heads of both decoders, which no shape tells.
const HEADS: usize = 8;
/// Points that a head looks at in each level.
const POINTS: usize = 4;
/// Groups of a group normalisation.
const GROUPS: usize = 32;
/// Added to every variance.
const EPS: f32 = 1e-5;

/// What the network is built from, read off its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The backbone.
    pub swin: swin::Config,
    /// Width of the pyramid and of the queries.
    pub width: usize,
    /// Width of a pixel's and of a mask's embedding.
    pub mask: usize,
    /// Layers of the pixel decoder and the width inside their MLPs.
    pub encoder: (usize, usize),
    /// Layers of the decoder and the width inside their MLPs.
    pub decoder: (usize, usize),
    /// Objects that are looked for.
    pub queries: usize,
    /// Classes, without the one for nothing.
    pub classes: usize,
}

impl Config {
    fn of(file: &TensorFile) -> Result<Self> {
        let sizes = Sizes(file);
        let swin = swin::Config::of(&sizes, ENCODER)?;
        let features = format!("{ENCODER}.hidden_states_norms.stage4.weight");
        sizes.ensure(swin.stages.len() == LEVELS + 1, &features, "a backbone of four stages")?;
        let feature = format!("{QUERIES}.queries_features.weight");
        let [queries, width] = sizes.of(&feature)?;
        sizes.ensure(width.is_multiple_of(GROUPS), &feature, "a width that is a multiple of 32")?;
        let [mask, ..] = sizes.of::<4>(&format!("{DECODER}.mask_projection.weight"))?;
        let [outputs, _] = sizes.of("class_predictor.weight")?;
        sizes.ensure(outputs > 1, "class_predictor.weight", "a class and the one for nothing")?;
        let layers = |prefix: &str| -> Result<(usize, usize)> {
            let [inner, _] = sizes.of(&format!("{prefix}.0.fc1.weight"))?;
            Ok((sizes.count(prefix), inner))
        };
        Ok(Self {
            swin,
            width,
            mask,
            encoder: layers(&format!("{DECODER}.encoder.layers"))?,
            decoder: layers(&format!("{QUERIES}.decoder.layers"))?,
            queries,
            classes: outputs - 1,
        })
    }
}

/// What the queries found in images.
pub struct Found {
    /// Scores before the softmax, `[b, queries, classes + 1]`; the last class is nothing.
    pub classes: Tensor,
    /// For every pixel of the image at a quarter of its size, whether it is each query's: `[b, h/4, w/4, queries]`, before the
    /// sigmoid.
    pub masks: Tensor,
}

/// The network.
pub struct Mask2Former {
    layout: Layout,
    config: Config,
    swin: Swin,
    pixels: PixelDecoder,
    decoder: Decoder,
}

impl Mask2Former {
    /// The network in `file`, in whichever layout, on `device`, with its matrices multiplied in `precision`.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or not as expected, or says that it is another network.
    pub fn load(file: &TensorFile, device: &Device, precision: Precision) -> Result<Self> {
        let (layout, file) = in_transformers(file)?;
        let config = Config::of(&file)?;
        let loader = Loader::new(&file, IGNORED, device).precision(precision);
        let root = loader.root().sub("model");
        let queries = root.sub("transformer_module");
        let under = root.sub("pixel_level_module");
        let found = Self {
            layout,
            swin: Swin::load(&under.sub("encoder"), &config.swin),
            pixels: PixelDecoder::load(&under.sub("decoder"), &config),
            decoder: Decoder::load(&queries, &loader.root().sub("class_predictor"), &config),
            config,
        };
        loader.finish()?;
        Ok(found)
    }

    /// Whose file it was.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What the network was built from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Images `[b, 3, h, w]`, made ready, to what is found in them.
    pub fn forward(&self, pixels: &Tensor) -> Found {
        let features = self.swin.forward(pixels);
        let pyramid = self.pixels.forward(&features);
        self.decoder.forward(&pyramid)
    }

    /// What the backbone gives: see [`Swin::forward`].
    pub fn features(&self, pixels: &Tensor) -> Vec<Tensor> {
        self.swin.forward(pixels)
    }
}

/// The tensors of `file` under the names of transformers.
fn in_transformers(file: &TensorFile) -> Result<(Layout, TensorFile)> {
    let file = file.clone().unwrapped();
    let Some(layout) = names::layout(file.names()) else {
        bail!(
            "{}: not a Mask2Former with a Swin backbone, as mmdetection or transformers writes it",
            file.path().display()
        );
    };
    let tensors = || file.entries().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
    Ok(match layout {
        Layout::HuggingFace => (layout, file),
        Layout::Mmdet2 | Layout::Mmdet3 => (layout, file.with(names::to_transformers(tensors()))),
    })
}
