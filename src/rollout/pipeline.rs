//! A whole text-to-image model (`StableDiffusion3Pipeline` of diffusers).

use anyhow::{Result, bail};

use super::schedule::Schedule;
use crate::device::{Device, Precision};
use crate::io::check_multiple;
use crate::models::autoencoder::Autoencoder;
use crate::models::load_network;
use crate::models::network::Network;
use crate::models::source::Model;

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
    /// Maps transformer, VAE and scheduler of `model` to `device`; `precision` as for [`load_network`] and [`Autoencoder::load`].
    ///
    /// # Errors
    /// If a part or file is missing or damaged, or the parts do not fit each other.
    pub fn load(model: &Model, device: &Device, precision: impl Into<Precision>) -> Result<Self> {
        let [network, vae, schedule] = ["transformer", "vae", "scheduler"].map(|name| model.component(name));
        let (network, vae, schedule) = (network?, vae?, schedule?);
        let schedule = Schedule::load(schedule)?;
        let precision = precision.into();
        let network = load_network(network, device, precision)?;
        let vae = Autoencoder::load(vae, device, precision)?;
        let colours = (vae.config().in_channels, vae.config().out_channels);
        if colours != (3, 3) {
            bail!(
                "{}: the vae maps {} channels to {}, expected the 3 of an image",
                model.path().display(),
                colours.0,
                colours.1
            );
        }
        let (latent, channels) = (vae.config().latent_channels, network.sizes().channels);
        if latent != channels {
            bail!("{}: the transformer has {channels} latent channels, the vae {latent}", model.path().display());
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
