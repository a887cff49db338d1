//! The sizes of a BLIP, read off its tensors: what `med_config.json` says beside them may be wrong (its `encoder_width` is).

use anyhow::{Result, ensure};

use super::{TEXT, VISION};
use crate::io::TensorFile;
use crate::models::sizes::Sizes as Shapes;

/// Width of a head, in both encoders.
const HEAD: usize = 64;

/// The sizes of the picture encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisionSizes {
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Height and width of a patch in pixels.
    pub patch: usize,
    /// Patches in a row, and rows.
    pub grid: usize,
}

/// The sizes of the text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSizes {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
}

/// The sizes of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of the picture encoder.
    pub vision: VisionSizes,
    /// Of the text encoder.
    pub text: TextSizes,
}

impl VisionSizes {
    /// Height and width of a picture in pixels.
    pub fn image(&self) -> usize {
        self.grid * self.patch
    }

    /// Heads of a block.
    pub fn heads(&self) -> usize {
        self.width / HEAD
    }
}

impl TextSizes {
    /// Heads of a block.
    pub fn heads(&self) -> usize {
        self.width / HEAD
    }
}

impl Sizes {
    /// Those of the model in `file`.
    pub(super) fn of(file: &TensorFile) -> Result<Self> {
        let shapes = Shapes(file);
        let [_, tokens, width] = shapes.of::<3>(&format!("{VISION}.pos_embed"))?;
        let [_, _, patch, _] = shapes.of::<4>(&format!("{VISION}.patch_embed.proj.weight"))?;
        let [inner, _] = shapes.of::<2>(&format!("{VISION}.blocks.0.mlp.fc1.weight"))?;
        let grid = tokens.saturating_sub(1).isqrt();
        let path = file.path().display();
        ensure!(
            grid > 0 && grid * grid + 1 == tokens,
            "{path}: {tokens} positions in {VISION}.pos_embed, expected a square number and one"
        );
        let vision = VisionSizes { width, inner, layers: shapes.count(&format!("{VISION}.blocks")), patch, grid };

        let [vocabulary, width] = shapes.of::<2>(&format!("{TEXT}.embeddings.word_embeddings.weight"))?;
        let [positions, _] = shapes.of::<2>(&format!("{TEXT}.embeddings.position_embeddings.weight"))?;
        let [inner, _] = shapes.of::<2>(&format!("{TEXT}.encoder.layer.0.intermediate.dense.weight"))?;
        let layers = shapes.count(&format!("{TEXT}.encoder.layer"));
        let text = TextSizes { vocabulary, positions, width, inner, layers };
        for (what, width) in [(VISION, vision.width), (TEXT, text.width)] {
            ensure!(
                width > 0 && width.is_multiple_of(HEAD),
                "{path}: {what} is {width} wide, expected a multiple of {HEAD}, which a head is"
            );
        }
        Ok(Self { vision, text })
    }
}
