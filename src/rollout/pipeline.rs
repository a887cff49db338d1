//! A whole text-to-image model in the folder layout of diffusers (`StableDiffusion3Pipeline`).

use std::path::Path;

use anyhow::{Result, bail};

use super::schedule::Schedule;
use crate::device::{DType, Device};
use crate::io::check_multiple;
use crate::models::autoencoder::Autoencoder;
use crate::models::index::ModelIndex;
use crate::models::load_network;
use crate::models::network::Network;

/// The parts of a pipeline that sampling needs once prompts are encoded.
pub struct Pipeline {
    /// The network that predicts velocities.
    pub network: Box<dyn Network>,
    /// Latents to images.
    pub vae: Autoencoder,
    /// Noise levels.
    pub schedule: Schedule,
}

impl Pipeline {
    /// Maps transformer, VAE and scheduler of the pipeline in `folder` to `device`; `compute` as for [`load_network`].
    ///
    /// # Errors
    /// If the folder is not an SD3 pipeline, a file is missing or damaged, or the parts do not fit each other.
    pub fn load(folder: &Path, device: &Device, compute: Option<DType>) -> Result<Self> {
        let index = ModelIndex::load(folder)?;
        for component in ["transformer", "vae", "scheduler"] {
            index.require(component)?;
        }
        let schedule = Schedule::load(&folder.join("scheduler"))?;
        let network = load_network(&folder.join("transformer"), device, compute)?;
        let vae = Autoencoder::load(&folder.join("vae"), device)?;
        let colours = (vae.config().in_channels, vae.config().out_channels);
        if colours != (3, 3) {
            bail!(
                "{}: the vae maps {} channels to {}, expected the 3 of an image",
                folder.display(),
                colours.0,
                colours.1
            );
        }
        let (latent, channels) = (vae.config().latent_channels, network.sizes().channels);
        if latent != channels {
            bail!("{}: the transformer has {channels} latent channels, the vae {latent}", folder.display());
        }
        Ok(Self { network, vae, schedule })
    }

    /// Height and width of the latent for an image of `height` by `width` pixels.
    ///
    /// # Errors
    /// Names the side that is impossible and the nearest that is not.
    pub fn latent_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (scale, sizes) = (self.vae.config().downscale(), self.network.sizes());
        for (what, side) in [("image height", height), ("image width", width)] {
            check_multiple(what, side, scale * sizes.patch, sizes.most_tokens)?;
        }
        Ok((height / scale, width / scale))
    }

    /// Side in pixels of the square images the model was made for.
    pub fn own_size(&self) -> usize {
        self.network.sizes().own_latent * self.vae.config().downscale()
    }
}
