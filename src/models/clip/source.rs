//! Finds a CLIP model at a path, whoever wrote it, and brings it under the names of transformers.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::config::{ClipConfig, HiddenAct, TextConfig, VisionConfig};
use crate::io::{TensorFile, read_json};
use crate::models::config::parse;
use crate::models::sizes::Sizes;
use crate::models::{names, outline};

/// What open_clip calls its weights in a folder.
const OPEN_CLIP: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];
/// What open_clip writes about a model beside its weights.
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
/// Transformers' config has this for "the largest id", which the end token is in every CLIP.
const LARGEST: u32 = 2;

/// The tensors of a model under the names of transformers, and its sizes.
pub(super) struct Source {
    pub file: TensorFile,
    pub config: ClipConfig,
}

/// The part of `open_clip_config.json` that the tensors do not say.
#[derive(Deserialize, Default)]
#[serde(default)]
struct OpenClipConfig {
    quick_gelu: bool,
    vision_cfg: OpenClipTower,
    text_cfg: OpenClipTower,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OpenClipTower {
    /// Of the vision tower.
    head_width: Option<usize>,
    /// Of the text tower.
    heads: Option<usize>,
}

impl Source {
    /// The model at `path`: a folder or the file of weights itself, in either layout; `activation` in the place of what it
    /// says of itself.
    pub fn open(path: &Path, activation: Option<HiddenAct>) -> Result<Self> {
        if outline::is_outline(path) {
            let settings = serde_json::from_value(outline::clip_h())?;
            let (config, file) = (ClipConfig::of(path, settings)?, TensorFile::outline(path, outline::WITH));
            return Ok(Self { file, config });
        }
        let file = weights(path)?.unwrapped();
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let original = names::clip::is_original(file.names());
        let file = if original {
            let tensors = file.entries().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
            file.with(names::clip::to_transformers(tensors))
        } else {
            file
        };
        let beside = folder.join(if original { OPEN_CLIP_CONFIG } else { "config.json" });
        let mut config = match (original, beside.exists()) {
            (false, true) => ClipConfig::read(&beside)?,
            (false, false) => from_tensors(&file, None)?,
            (true, true) => from_tensors(&file, Some(open_clip_config(&beside)?))?,
            (true, false) => from_tensors(&file, Some(OpenClipConfig::default()))?,
        };
        if let Some(activation) = activation {
            config.text.hidden_act = activation;
            config.vision.hidden_act = activation;
        }
        Ok(Self { file, config })
    }
}

/// The file of weights at `path`, or of the folder that it is.
fn weights(path: &Path) -> Result<TensorFile> {
    ensure!(path.exists(), "{}: no such file or folder", path.display());
    if !path.is_dir() {
        return TensorFile::open(path);
    }
    let original = OPEN_CLIP.map(|name| path.join(name)).into_iter().find(|path| path.exists());
    match (TensorFile::open_component(path, "model", None), original) {
        // What is there of transformers but damaged is not passed over.
        (Err(_), Some(original)) if !has_transformers(path) => TensorFile::open(&original),
        (found, _) => found,
    }
}

/// Whether `folder` has weights under a name of transformers.
fn has_transformers(folder: &Path) -> bool {
    folder.join("model.safetensors.index.json").exists()
        || folder.join("model.safetensors").exists()
        || TensorFile::is_of_torch(folder, "model")
}

fn open_clip_config(path: &Path) -> Result<OpenClipConfig> {
    let mut whole: Value = read_json(path)?;
    let Some(config) = whole.get_mut("model_cfg") else { bail!("{}: no key 'model_cfg'", path.display()) };
    parse(path, "model_cfg.", config.take())
}

/// The sizes that the shapes of the tensors say. What they do not say is in `open_clip`, if that wrote the model.
fn from_tensors(file: &TensorFile, open_clip: Option<OpenClipConfig>) -> Result<ClipConfig> {
    let (path, sizes) = (file.path(), Sizes(file));
    let patches = sizes.of("vision_model.embeddings.patch_embedding.weight");
    let [width, num_channels, patch_size, _] =
        patches.context("not a CLIP model in a layout of transformers or open_clip")?;
    let [positions, _] = sizes.of("vision_model.embeddings.position_embedding.weight")?;
    let [vocab_size, text_width] = sizes.of("text_model.embeddings.token_embedding.weight")?;
    let [text_positions, _] = sizes.of("text_model.embeddings.position_embedding.weight")?;
    let [joint, _] = sizes.of("visual_projection.weight")?;
    let [text_inner, _] = sizes.of("text_model.encoder.layers.0.mlp.fc1.weight")?;
    let [vision_inner, _] = sizes.of("vision_model.encoder.layers.0.mlp.fc1.weight")?;
    // LAION's models have the exact activation, OpenAI's, none of which is as wide, the approximation.
    let quick = open_clip.as_ref().map_or(width <= 1024, |config| config.quick_gelu);
    let hidden_act = if quick { HiddenAct::QuickGelu } else { HiddenAct::Gelu };
    let OpenClipConfig { vision_cfg, text_cfg, .. } = open_clip.unwrap_or_default();
    let grid = positions.saturating_sub(1).isqrt();
    ensure!(
        grid * grid + 1 == positions,
        "{}: {positions} vision positions are not a class and a square of patches",
        path.display()
    );
    let config = ClipConfig {
        text: TextConfig {
            vocab_size,
            hidden_size: text_width,
            intermediate_size: text_inner,
            projection_dim: joint,
            num_hidden_layers: sizes.count("text_model.encoder.layers"),
            num_attention_heads: text_cfg.heads.unwrap_or(text_width / 64),
            max_position_embeddings: text_positions,
            hidden_act,
            eos_token_id: LARGEST,
            ..TextConfig::default()
        },
        vision: VisionConfig {
            hidden_size: width,
            intermediate_size: vision_inner,
            num_hidden_layers: sizes.count("vision_model.encoder.layers"),
            num_attention_heads: width / vision_cfg.head_width.unwrap_or(head_width(width)).max(1),
            num_channels,
            image_size: grid.saturating_mul(patch_size),
            patch_size,
            hidden_act,
            ..VisionConfig::default()
        },
        projection_dim: joint,
    };
    config.check(path)?;
    Ok(config)
}

/// The width of a vision head by the tower's: LAION's ViT-H, g and bigG do not have the usual 64.
fn head_width(width: usize) -> usize {
    match width {
        1280 => 80,
        1408 => 88,
        1664 => 104,
        _ => 64,
    }
}
