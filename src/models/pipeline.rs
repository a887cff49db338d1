//! A whole text-to-image model in the folder layout of diffusers (`StableDiffusion3Pipeline`).

use std::path::Path;

use anyhow::{Result, bail};

use super::autoencoder::Autoencoder;
use super::index::ModelIndex;
use super::mmdit::{self, Mmdit};
use super::text::TextEncoders;
use crate::device::Tensor;
use crate::io::check_multiple;
use crate::rollout::schedule::Schedule;

/// The parts of a pipeline that sampling needs once prompts are encoded.
pub struct Pipeline {
    /// The transformer that predicts velocities.
    pub transformer: Mmdit,
    /// Latents to images.
    pub vae: Autoencoder,
    /// Noise levels.
    pub schedule: Schedule,
}

impl Pipeline {
    /// Maps transformer, VAE and scheduler of the pipeline in `folder`.
    ///
    /// # Errors
    /// If the folder is not an SD3 pipeline, a file is missing or damaged, or the parts do not fit each other.
    pub fn load(folder: &Path) -> Result<Self> {
        let index = ModelIndex::load(folder)?;
        for component in ["transformer", "vae", "scheduler"] {
            index.require(component)?;
        }
        let schedule = Schedule::load(&folder.join("scheduler"))?;
        let transformer = Mmdit::load(&folder.join("transformer"))?;
        let vae = Autoencoder::load(&folder.join("vae"))?;
        let colours = (vae.config().in_channels, vae.config().out_channels);
        if colours != (3, 3) {
            bail!(
                "{}: the vae maps {} channels to {}, expected the 3 of an image",
                folder.display(),
                colours.0,
                colours.1
            );
        }
        let (latent, channels) = (vae.config().latent_channels, transformer.config.in_channels);
        if latent != channels {
            bail!("{}: the transformer has {channels} latent channels, the vae {latent}", folder.display());
        }
        let velocity = transformer.config.velocity_channels();
        if velocity != channels {
            bail!("{}: the transformer maps {channels} channels to {velocity}, expected the same", folder.display());
        }
        Ok(Self { transformer, vae, schedule })
    }

    /// Maps the text encoders and tokenizers of the pipeline in `folder`.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_text(folder: &Path) -> Result<TextEncoders> {
        let index = ModelIndex::load(folder)?;
        index.require("transformer")?;
        let config = mmdit::Config::load(&folder.join("transformer"))?;
        let text = TextEncoders::load(folder, &index, config.joint_attention_dim)?;
        let (want, got) = (config.pooled_projection_dim, text.pooled_dim());
        if want != got {
            bail!("{}: the text encoders pool to {got} values, the transformer expects {want}", folder.display());
        }
        Ok(text)
    }

    /// Height and width of the latent for an image of `height` by `width` pixels.
    ///
    /// # Errors
    /// Names the side that is impossible and the nearest that is not.
    pub fn latent_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (scale, c) = (self.vae.config().downscale(), &self.transformer.config);
        for (what, side) in [("image height", height), ("image width", width)] {
            check_multiple(what, side, scale * c.patch_size, c.pos_embed_max_size)?;
        }
        Ok((height / scale, width / scale))
    }

    /// Side in pixels of the square images the model was made for.
    pub fn own_size(&self) -> usize {
        self.transformer.config.sample_size * self.vae.config().downscale()
    }

    /// Images `[b, 3, H, W]` in about -1..1 from latents as the sampler leaves them.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.vae.decode(&self.vae.denormalise(latents))
    }
}
