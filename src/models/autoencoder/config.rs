use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::models::config::{check_sizes, parse};
use crate::models::source::Component;

/// The autoencoder's sizes, as `vae/config.json` of diffusers gives them (`AutoencoderKL`). Keys that do not
/// change the network are passed over.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Channels of the images that are encoded.
    pub in_channels: usize,
    /// Channels of the images that are decoded.
    pub out_channels: usize,
    /// Channels of each level, finest first; every level but the last halves the image.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Groups of every normalisation.
    pub norm_num_groups: usize,
    /// What the diffusion model sees is `(latent - shift_factor) · scaling_factor`.
    pub scaling_factor: f32,
    /// See [`Config::scaling_factor`]; none means 0.
    pub shift_factor: Option<f32>,
    /// A 1x1 convolution after the encoder (SD1, SDXL).
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder (SD1, SDXL).
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Self-attention at the coarsest level.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    #[serde(default)]
    act_fn: Option<String>,
    #[serde(default)]
    down_block_types: Vec<String>,
    #[serde(default)]
    up_block_types: Vec<String>,
}

fn yes() -> bool {
    true
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
            ("in_channels", config.in_channels),
            ("out_channels", config.out_channels),
            ("latent_channels", config.latent_channels),
            ("norm_num_groups", config.norm_num_groups),
        ];
        check_sizes(&path, "", &sizes, &[("layers_per_block", config.layers_per_block)])?;
        let levels = config.block_out_channels.len();
        ensure!((1..=16).contains(&levels), "{file}: block_out_channels has {levels} entries, expected 1 to 16");
        for channels in &config.block_out_channels {
            check_sizes(&path, "", &[("block_out_channels", *channels)], &[])?;
            let groups = config.norm_num_groups;
            ensure!(
                *channels > 0 && channels.is_multiple_of(groups),
                "{file}: norm_num_groups {groups} does not divide {channels} of block_out_channels"
            );
        }
        let scale = config.scaling_factor;
        // Latents are divided by it.
        let is_factor = scale > 0.0 && scale.is_finite() && scale.recip().is_finite();
        ensure!(is_factor, "{file}: scaling_factor is {scale}, expected a positive number that f32 can divide by");
        let shift = config.shift_factor.unwrap_or(0.0);
        ensure!(shift.is_finite(), "{file}: shift_factor is {shift} in f32, expected a finite number");
        if let Some(act) = &config.act_fn {
            ensure!(act == "silu" || act == "swish", "{file}: act_fn is '{act}', expected 'silu'");
        }
        let blocks = [
            ("down_block_types", &config.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &config.up_block_types, "UpDecoderBlock2D"),
        ];
        for (key, types, expected) in blocks {
            if let Some(other) = types.iter().find(|t| *t != expected) {
                anyhow::bail!("{file}: {key} holds '{other}', expected '{expected}' only");
            }
            let (found, levels) = (types.len(), config.block_out_channels.len());
            ensure!(types.is_empty() || found == levels, "{file}: {key} has {found} entries for {levels} levels");
        }
        Ok(config)
    }

    /// Image pixels per latent pixel and axis.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
