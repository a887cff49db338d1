//! Swin (Liu et al. 2021): a transformer over windows of an image, which are shifted from block to block, in stages of half
//! the size each. In the names of transformers' `SwinBackbone`.

mod block;

use anyhow::Result;

use self::block::Block;
use super::sizes::Sizes;
use super::{LayerNorm, Linear};
use crate::device::Tensor;
use crate::io::Scope;
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::windows;

/// As in both libraries.
const EPS: f32 = 1e-5;

/// What one stage is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct StageConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Pixels of a window's side.
    pub window: usize,
}

/// What the backbone is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Pixels of a patch's side.
    pub patch: usize,
    /// The stages, the finest first.
    pub stages: Vec<StageConfig>,
}

impl Config {
    /// What the shapes of the tensors under `prefix` say.
    ///
    /// # Errors
    /// Names the tensor that is missing or of a shape that no such network has.
    pub fn of(sizes: &Sizes, prefix: &str) -> Result<Self> {
        let [embed, _, patch, _] = sizes.of(&format!("{prefix}.embeddings.patch_embeddings.projection.weight"))?;
        let stage = |s: usize| {
            let blocks = format!("{prefix}.encoder.layers.{s}.blocks");
            let first = format!("{blocks}.0");
            let table = format!("{first}.attention.self.relative_position_bias_table");
            let [rows, heads] = sizes.of(&table)?;
            let [inner, width] = sizes.of(&format!("{first}.intermediate.dense.weight"))?;
            let side = rows.isqrt();
            sizes.ensure(side * side == rows && side % 2 == 1, &table, "the square of an odd number of rows")?;
            sizes.ensure(
                width == embed << s,
                &format!("{first}.intermediate.dense.weight"),
                "twice the stage before",
            )?;
            sizes.ensure(width.is_multiple_of(heads), &table, "heads that divide the width")?;
            Ok(StageConfig { width, depth: sizes.count(&blocks), heads, inner, window: side.div_ceil(2) })
        };
        let count = sizes.count(&format!("{prefix}.encoder.layers"));
        Ok(Self { patch, stages: (0..count).map(stage).collect::<Result<_>>()? })
    }
}

struct Stage {
    blocks: Vec<Block>,
    /// Of what the stage gives.
    norm: LayerNorm,
    /// Normalised neighbours to the next stage.
    downsample: Option<(LayerNorm, Linear)>,
}

/// The backbone.
pub struct Swin {
    patch: usize,
    embed: Linear,
    norm: LayerNorm,
    stages: Vec<Stage>,
}

impl Swin {
    /// The backbone under `scope`.
    pub fn load(scope: &Scope, config: &Config) -> Self {
        let (patch, embed) = (config.patch, config.stages[0].width);
        let embeddings = scope.sub("embeddings");
        let projection = embeddings.sub("patch_embeddings").sub("projection");
        let stage = |(s, stage): (usize, &StageConfig)| {
            let under = scope.sub("encoder").sub("layers").sub(s);
            let (width, downsample) = (stage.width, under.sub("downsample"));
            let merge = || {
                let reduction = Linear::load(&downsample.sub("reduction"), 4 * width, 2 * width, false);
                (LayerNorm::load(&downsample.sub("norm"), 4 * width, EPS), reduction)
            };
            Stage {
                blocks: (0..stage.depth).map(|b| Block::load(&under.sub("blocks").sub(b), stage, b % 2 == 1)).collect(),
                norm: LayerNorm::load(&scope.sub("hidden_states_norms").sub(format!("stage{}", s + 1)), width, EPS),
                downsample: (s + 1 < config.stages.len()).then(merge),
            }
        };
        Self {
            patch,
            embed: Linear {
                weight: projection.tensor("weight", &[embed, 3, patch, patch]).reshape(&[embed, 3 * patch * patch]),
                bias: Some(projection.tensor("bias", &[embed])),
                fp8: None,
            },
            norm: LayerNorm::load(&embeddings.sub("norm"), embed, EPS),
            stages: config.stages.iter().enumerate().map(stage).collect(),
        }
    }

    /// What each stage gives of images `[b, 3, h, w]`, normalised: `[b, h', w', width]`, the finest first. Sides that are no
    /// multiples of a patch are continued with zeros.
    pub fn forward(&self, pixels: &Tensor) -> Vec<Tensor> {
        let (b, p) = (pixels.dim(0), self.patch);
        let grid = (pixels.dim(2).div_ceil(p), pixels.dim(3).div_ceil(p));
        let pixels = padded(pixels, [grid.0 * p, grid.1 * p]);
        let patches = Patches { channels: 3, size: p, grid };
        let tokens = self.embed.forward(&patchify::forward(&pixels, &patches, Order::ChannelFirst));
        let mut x = self.norm.forward(&tokens).reshape(&[b, grid.0, grid.1, tokens.width()]);
        let mut features = Vec::new();
        for stage in &self.stages {
            for block in &stage.blocks {
                x = block.forward(x);
            }
            features.push(stage.norm.forward(&x));
            if let Some((norm, reduction)) = &stage.downsample {
                x = reduction.forward(&norm.forward(&windows::neighbours(&x)));
            }
        }
        features
    }
}

/// Images `[b, c, h, w]`, continued with zeros to the right and below.
fn padded(pixels: &Tensor, [height, width]: [usize; 2]) -> Tensor {
    let &[b, c, h, w] = pixels.shape() else { panic!("swin: {pixels:?}") };
    if [h, w] == [height, width] {
        return pixels.clone();
    }
    let mut out = pixels.zeros_like(&[b * c, height, width]);
    crate::ops::copy::block_into(&mut out, 0, 0, &pixels.clone().reshape(&[b * c, h, w]));
    out.reshape(&[b, c, height, width])
}
