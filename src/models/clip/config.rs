use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::io::read_json;
use crate::models::config::{MOST_SIZE, check_sizes, parse};
use crate::models::source::Component;

/// The non-linearity between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum HiddenAct {
    /// `x·sigmoid(1.702 x)`, OpenAI's models.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// With the error function, LAION's models.
    #[serde(rename = "gelu")]
    Gelu,
}

/// The keys of `CLIPTextConfig` that shape the network; defaults as in transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Width of `text_embeds`.
    pub projection_dim: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads per block.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    pub(super) hidden_act: HiddenAct,
    pub(super) layer_norm_eps: f32,
    /// The token whose first position is pooled; 2 (a mistake in old files) stands for the largest id.
    pub eos_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

/// The keys of `CLIPVisionConfig` that shape the network; defaults as in transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads per block.
    pub num_attention_heads: usize,
    /// Colours of a pixel.
    pub num_channels: usize,
    /// Height and width of the input in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    pub(super) hidden_act: HiddenAct,
    pub(super) layer_norm_eps: f32,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// `CLIPConfig`: both towers and what joins them.
#[derive(Clone, Debug)]
pub struct ClipConfig {
    /// The text tower.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Width of the joint space.
    pub projection_dim: usize,
}

impl TextConfig {
    /// The `config.json` of a text encoder.
    pub(super) fn load(component: impl Into<Component>) -> Result<Self> {
        let (path, settings) = component.into().settings("config.json")?;
        let config: Self = parse(&path, "", settings)?;
        config.check(&path, "")?;
        Ok(config)
    }

    fn check(&self, path: &Path, within: &str) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("projection_dim", self.projection_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        check_sizes(path, within, &sizes, &[("num_hidden_layers", self.num_hidden_layers)])?;
        check_heads(path, within, self.hidden_size, self.num_attention_heads)
    }
}

impl ClipConfig {
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::of(path, read_json(path)?)
    }

    /// What `whole`, the content of `path`, says.
    pub(super) fn of(path: &Path, mut whole: Map<String, Value>) -> Result<Self> {
        // Old files repeat a tower's keys in `*_config_dict`, which transformers lets win.
        let mut tower = |name: &str| {
            let mut tower = whole.remove(name).filter(|v| !v.is_null()).unwrap_or_else(|| Map::new().into());
            if let (Some(tower), Some(Value::Object(over))) =
                (tower.as_object_mut(), whole.remove(&format!("{name}_dict")))
            {
                tower.extend(over);
            }
            tower
        };
        let text: TextConfig = parse(path, "text_config.", tower("text_config"))?;
        let vision: VisionConfig = parse(path, "vision_config.", tower("vision_config"))?;
        let projection_dim = match whole.get("projection_dim") {
            None => 512,
            Some(v) => v.as_u64().with_context(|| {
                format!("{}: key 'projection_dim': expected a whole number, found {v}", path.display())
            })? as usize,
        };
        let config = Self { text, vision, projection_dim };
        config.check(path)?;
        Ok(config)
    }

    /// Fails unless the sizes, which `path` says, are those of a model that could be.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        self.text.check(path, "text_config.")?;
        let v = &self.vision;
        let sizes = [("intermediate_size", v.intermediate_size), ("num_channels", v.num_channels)];
        check_sizes(path, "vision_config.", &sizes, &[("num_hidden_layers", v.num_hidden_layers)])?;
        check_heads(path, "vision_config.", v.hidden_size, v.num_attention_heads)?;
        ensure!(
            v.patch_size > 0 && v.image_size >= v.patch_size,
            "{}: vision_config.image_size {} has no room for a patch of {}",
            path.display(),
            v.image_size,
            v.patch_size
        );
        check_sizes(path, "vision_config.", &[("image_size", v.image_size)], &[])?;
        check_sizes(path, "", &[("projection_dim", self.projection_dim)], &[])
    }
}

fn check_heads(path: &Path, within: &str, width: usize, heads: usize) -> Result<()> {
    let path = path.display();
    ensure!(
        heads > 0 && width.is_multiple_of(heads) && width > 0,
        "{path}: {within}hidden_size {width} is not a multiple of {within}num_attention_heads {heads}"
    );
    ensure!(width <= MOST_SIZE, "{path}: {within}hidden_size is {width}, expected at most {MOST_SIZE}");
    Ok(())
}
