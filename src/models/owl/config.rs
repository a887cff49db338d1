use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{ABSTRACTOR, VISION};
use crate::io::{TensorFile, read_json};
use crate::models::sizes::Sizes;

/// The keys of `config.json` that the tensors do not say.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Keys {
    num_attention_heads: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    visual_config: Visual,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Visual {
    visual_model: Part,
    visual_abstractor: Part,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Part {
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f32>,
}

/// The sizes of the picture encoder.
#[derive(Clone, Debug)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads of a block.
    pub heads: usize,
    /// Height and width of a patch in pixels.
    pub patch: usize,
    /// Patches in a row, and rows.
    pub grid: usize,
    pub(super) eps: f32,
}

/// The sizes of what brings a picture to a few tokens.
#[derive(Clone, Debug)]
pub struct AbstractorConfig {
    /// How many tokens, without the one at the end.
    pub queries: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads of a block.
    pub heads: usize,
    pub(super) eps: f32,
}

/// The sizes of the language model.
#[derive(Clone, Debug)]
pub struct LanguageConfig {
    /// Number of token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside an MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Heads of a block.
    pub heads: usize,
    pub(super) eps: f32,
    pub(super) theta: f32,
}

/// All three.
#[derive(Clone, Debug)]
pub struct OwlConfig {
    /// Of the picture encoder.
    pub vision: VisionConfig,
    /// Of what comes after it.
    pub abstractor: AbstractorConfig,
    /// Of the language model.
    pub language: LanguageConfig,
}

impl VisionConfig {
    /// Height and width of a picture in pixels.
    pub fn image(&self) -> usize {
        self.grid * self.patch
    }
}

impl OwlConfig {
    /// That of the model whose tensors are in `file`; what they do not say is in `path`, a `config.json`.
    pub(super) fn read(file: &TensorFile, path: &Path) -> Result<Self> {
        let (keys, shapes): (Keys, _) = (read_json(path)?, Sizes(file));
        let heads = |what: &str, key: Option<usize>, width: usize, head: usize| {
            let heads = key.unwrap_or(width / head);
            let fits = heads > 0 && width.is_multiple_of(2 * heads);
            ensure!(fits, "{}: {heads} heads in {what}, which is {width} wide", path.display());
            Ok(heads)
        };
        let [_, tokens, width] = shapes.of::<3>(&format!("{VISION}.embeddings.position_embedding"))?;
        let [_, _, patch, _] = shapes.of::<4>(&format!("{VISION}.embeddings.patch_embed.weight"))?;
        let [inner, _] = shapes.of::<2>(&format!("{VISION}.encoder.layers.0.mlp.fc1.weight"))?;
        let grid = tokens.saturating_sub(1).isqrt();
        let square = grid > 0 && grid * grid + 1 == tokens;
        ensure!(square, "{}: {tokens} positions of a picture, expected a square number and one", file.path().display());
        let Visual { visual_model, visual_abstractor } = keys.visual_config;
        let vision = VisionConfig {
            heads: heads(VISION, visual_model.num_attention_heads, width, 64)?,
            layers: shapes.count(&format!("{VISION}.encoder.layers")),
            eps: visual_model.layer_norm_eps.unwrap_or(1e-6),
            width,
            inner,
            patch,
            grid,
        };
        let [_, queries, width] = shapes.of::<3>(&format!("{ABSTRACTOR}.query_embeds"))?;
        ensure!(
            width == vision.width,
            "{}: {ABSTRACTOR} is {width} wide, expected {} as {VISION}, whose tokens follow its own",
            file.path().display(),
            vision.width
        );
        let [inner, _] =
            shapes.of::<2>(&format!("{ABSTRACTOR}.encoder.layers.0.crossattention.output.mlp.w1.weight"))?;
        let abstractor = AbstractorConfig {
            heads: heads(ABSTRACTOR, visual_abstractor.num_attention_heads, width, 64)?,
            layers: shapes.count(&format!("{ABSTRACTOR}.encoder.layers")),
            eps: visual_abstractor.layer_norm_eps.unwrap_or(1e-6),
            queries,
            width,
            inner,
        };
        let [vocabulary, width] = shapes.of::<2>("model.embed_tokens.weight")?;
        let [inner, _] = shapes.of::<2>("model.layers.0.mlp.gate_proj.weight")?;
        let eps = keys.rms_norm_eps.with_context(|| format!("{}: no key 'rms_norm_eps'", path.display()))?;
        let language = LanguageConfig {
            heads: heads("model.layers", keys.num_attention_heads, width, 128)?,
            layers: shapes.count("model.layers"),
            theta: keys.rope_theta.unwrap_or(1e4),
            vocabulary,
            width,
            inner,
            eps,
        };
        Ok(Self { vision, abstractor, language })
    }
}
