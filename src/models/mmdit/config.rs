use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::models::config::{MOST_SIZE, check_sizes, parse};
use crate::models::network::Sizes;
use crate::models::source::Component;

/// The transformer's sizes, as `transformer/config.json` of diffusers gives them (`SD3Transformer2DModel`).
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Latent height and width the model was made for; only the default image size depends on it.
    pub sample_size: usize,
    /// Latent pixels per token and axis.
    pub patch_size: usize,
    /// Latent channels.
    pub in_channels: usize,
    /// Channels of the predicted velocity; absent means [`Config::in_channels`].
    pub out_channels: Option<usize>,
    /// Joint blocks.
    pub num_layers: usize,
    /// Channels per head.
    pub attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the text embeddings.
    pub joint_attention_dim: usize,
    /// Width the text embeddings are projected to; equals the hidden width.
    pub caption_projection_dim: usize,
    /// Width of the pooled text embeddings.
    pub pooled_projection_dim: usize,
    /// Side of the square table of positions, in tokens.
    pub pos_embed_max_size: usize,
    /// Blocks with a second, image-only attention (SD3.5 Medium); none in SD3.
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
    /// `rms_norm` (SD3.5) or none (SD3).
    #[serde(default)]
    pub qk_norm: Option<String>,
}

impl Config {
    /// Reads and checks the `config.json` of `component`.
    ///
    /// # Errors
    /// Names the file and the key that is missing, malformed or impossible.
    pub fn load(component: impl Into<Component>) -> Result<Self> {
        let (path, settings) = component.into().settings("config.json")?;
        let config: Self = parse(&path, "", settings)?;
        let file = path.display();
        let sizes = [
            ("sample_size", config.sample_size),
            ("patch_size", config.patch_size),
            ("in_channels", config.in_channels),
            ("out_channels", config.velocity_channels()),
            ("attention_head_dim", config.attention_head_dim),
            ("num_attention_heads", config.num_attention_heads),
            ("joint_attention_dim", config.joint_attention_dim),
            ("pooled_projection_dim", config.pooled_projection_dim),
            ("pos_embed_max_size", config.pos_embed_max_size),
        ];
        check_sizes(&path, "", &sizes, &[("num_layers", config.num_layers)])?;
        if let Some(norm) = &config.qk_norm
            && norm != "rms_norm"
        {
            bail!("{file}: qk_norm is '{norm}', expected 'rms_norm' or null");
        }
        if let Some(layer) = config.dual_attention_layers.iter().find(|l| **l >= config.num_layers) {
            bail!("{file}: dual_attention_layers names layer {layer} of {}", config.num_layers);
        }
        let (hidden, caption) = (config.hidden(), config.caption_projection_dim);
        let width = "num_attention_heads·attention_head_dim";
        ensure!(hidden <= MOST_SIZE, "{file}: {width} is {hidden}, expected at most {MOST_SIZE}");
        ensure!(caption == hidden, "{file}: caption_projection_dim is {caption}, expected {width} = {hidden}");
        Ok(config)
    }

    /// Width of a token.
    pub fn hidden(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The latents and texts it is for.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            channels: self.in_channels,
            patch: self.patch_size,
            most_tokens: self.pos_embed_max_size,
            own_latent: self.sample_size,
            text: self.joint_attention_dim,
            pooled: self.pooled_projection_dim,
        }
    }

    /// Channels of the predicted velocity.
    pub fn velocity_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }
}
