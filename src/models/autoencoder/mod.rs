//! The image autoencoder of Stable Diffusion (`AutoencoderKL` of diffusers): forward only.

mod block;
mod config;

use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use self::block::{Conv, Level, Mid, Norm, Resize};
use crate::device::Tensor;
use crate::io::{Loader, Scope, TensorFile};

pub use self::config::Config;

/// Images up to this many pixels are processed one per thread, whole activations staying in cache; larger ones one
/// after another with all threads on each, so that memory does not grow with the number of threads.
const SMALL: u64 = 256 * 256;

/// How many images of `pixels` each are at work at the same time.
pub fn at_once(pixels: u64) -> usize {
    if pixels <= SMALL { rayon::current_num_threads() } else { 1 }
}

/// The Gaussian an image is encoded to, `[b, c, h, w]` each.
pub struct Moments {
    /// Its mean, which is also its mode.
    pub mean: Tensor,
    /// The logarithm of its variance, limited to -30..20.
    pub logvar: Tensor,
}

/// The autoencoder with its frozen weights.
pub struct Autoencoder {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
}

struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    mid: Mid,
    norm_out: Norm,
    conv_out: Conv,
    quant: Option<Conv>,
}

struct Decoder {
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: Mid,
    levels: Vec<Level>,
    norm_out: Norm,
    conv_out: Conv,
}

impl Encoder {
    fn load(root: &Scope, config: &Config) -> Self {
        let scope = root.sub("encoder");
        let channels = &config.block_out_channels;
        let (finest, coarsest) = (channels[0], channels[channels.len() - 1]);
        let moments = 2 * config.latent_channels;
        let level = |i: usize| {
            let scope = scope.sub(format_args!("down_blocks.{i}"));
            let (inputs, outputs) = (channels[i.saturating_sub(1)], channels[i]);
            let resize = if i + 1 < channels.len() { Resize::halve(&scope, outputs) } else { Resize::Keep };
            Level::load(&scope, config, inputs, outputs, config.layers_per_block, resize)
        };
        Self {
            conv_in: Conv::load3(&scope.sub("conv_in"), config.in_channels, finest),
            levels: (0..channels.len()).map(level).collect(),
            mid: Mid::load(&scope.sub("mid_block"), config, coarsest),
            norm_out: Norm::load(&scope.sub("conv_norm_out"), config, coarsest),
            conv_out: Conv::load3(&scope.sub("conv_out"), coarsest, moments),
            quant: config.use_quant_conv.then(|| Conv::load1(&root.sub("quant_conv"), moments, moments)),
        }
    }

    /// `[b, in, h, w]` to `[b, 2c, h', w']`.
    fn forward(&self, image: &Tensor) -> Tensor {
        let x = self.levels.iter().fold(self.conv_in.forward(image, None), |x, level| level.forward(x));
        let x = self.mid.forward(&x);
        let x = self.conv_out.forward(&self.norm_out.forward(&x, true), None);
        self.quant.as_ref().map(|c| c.forward(&x, None)).unwrap_or(x)
    }
}

impl Decoder {
    fn load(root: &Scope, config: &Config) -> Self {
        let scope = root.sub("decoder");
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (coarsest, finest) = (channels[0], channels[channels.len() - 1]);
        let latent = config.latent_channels;
        let level = |i: usize| {
            let scope = scope.sub(format_args!("up_blocks.{i}"));
            let (inputs, outputs) = (channels[i.saturating_sub(1)], channels[i]);
            let resize = if i + 1 < channels.len() { Resize::double(&scope, outputs) } else { Resize::Keep };
            Level::load(&scope, config, inputs, outputs, config.layers_per_block + 1, resize)
        };
        Self {
            post_quant: config.use_post_quant_conv.then(|| Conv::load1(&root.sub("post_quant_conv"), latent, latent)),
            conv_in: Conv::load3(&scope.sub("conv_in"), latent, coarsest),
            mid: Mid::load(&scope.sub("mid_block"), config, coarsest),
            levels: (0..channels.len()).map(level).collect(),
            norm_out: Norm::load(&scope.sub("conv_norm_out"), config, finest),
            conv_out: Conv::load3(&scope.sub("conv_out"), finest, config.out_channels),
        }
    }

    /// `[b, c, h, w]` to `[b, out, h', w']`.
    fn forward(&self, latent: &Tensor) -> Tensor {
        let x = match &self.post_quant {
            Some(conv) => self.conv_in.forward(&conv.forward(latent, None), None),
            None => self.conv_in.forward(latent, None),
        };
        let x = self.levels.iter().fold(self.mid.forward(&x), |x, level| level.forward(x));
        self.conv_out.forward(&self.norm_out.forward(&x, true), None)
    }
}

impl Autoencoder {
    /// Maps the weights in `folder` (`vae/` of a pipeline).
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing, misshapen or impossible.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = Config::load(folder)?;
        let file = TensorFile::open_component(folder, "diffusion_pytorch_model")?;
        let loader = Loader::new(&file, &[]);
        let root = loader.root();
        let (encoder, decoder) = (Encoder::load(&root, &config), Decoder::load(&root, &config));
        loader.finish()?;
        Ok(Self { config, encoder, decoder })
    }

    /// Its sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the diffusion model works on, `[b, c, h, w]`, as what [`Autoencoder::decode`] takes.
    pub fn denormalise(&self, latent: &Tensor) -> Tensor {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0));
        let mut out = latent.clone();
        out.data_mut().iter_mut().for_each(|v| *v = *v / scale + shift);
        out
    }

    /// What [`Autoencoder::encode`] gives as what the diffusion model works on; undoes [`Autoencoder::denormalise`].
    pub fn normalise(&self, latent: &Tensor) -> Tensor {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0));
        let mut out = latent.clone();
        out.data_mut().iter_mut().for_each(|v| *v = (*v - shift) * scale);
        out
    }

    /// Images `[b, 3, H, W]` in about -1..1 from latents `[b, c, h, w]`, already divided by the scaling factor and
    /// shifted ([`Autoencoder::denormalise`]); `H = h ·` [`Config::downscale`].
    pub fn decode(&self, latent: &Tensor) -> Tensor {
        let c = &self.config;
        assert_eq!(latent.dim(1), c.latent_channels, "decode: latent {latent:?}");
        let size = [latent.dim(2) * c.downscale(), latent.dim(3) * c.downscale()];
        each(latent, [c.out_channels, size[0], size[1]], size[0] * size[1], |x| self.decoder.forward(x))
    }

    /// The latent distribution of images `[b, 3, H, W]` in -1..1.
    pub fn encode(&self, image: &Tensor) -> Moments {
        let (c, latent) = (&self.config, self.config.latent_channels);
        assert_eq!(image.dim(1), c.in_channels, "encode: image {image:?}");
        // Halving with one zero row below: every level rounds down.
        let halved = |n: usize| n / c.downscale();
        let shape = [2 * latent, halved(image.dim(2)), halved(image.dim(3))];
        let moments = each(image, shape, image.dim(2) * image.dim(3), |x| self.encoder.forward(x));
        let part = |first: usize| {
            let plane = shape[1] * shape[2];
            let mut out = Tensor::scratch(&[image.dim(0), latent, shape[1], shape[2]]);
            let images = moments.data().chunks_exact((2 * latent * plane).max(1));
            for (out, m) in out.data_mut().chunks_exact_mut((latent * plane).max(1)).zip(images) {
                out.copy_from_slice(&m[first * plane..][..latent * plane]);
            }
            out
        };
        let mut logvar = part(latent);
        logvar.data_mut().iter_mut().for_each(|v| *v = v.clamp(-30.0, 20.0));
        Moments { mean: part(0), logvar }
    }
}

/// Applies `f` (from `[1, ..]` to `[1, shape]`) to every image of `x`; `pixels` is the size of the larger side.
fn each(x: &Tensor, shape: [usize; 3], pixels: usize, f: impl Fn(&Tensor) -> Tensor + Sync) -> Tensor {
    let mut out = Tensor::scratch(&[x.dim(0), shape[0], shape[1], shape[2]]);
    let length = shape.iter().product::<usize>();
    let one = |(b, out): (usize, &mut [f32])| {
        let y = f(&x.slice(b..b + 1));
        assert_eq!(y.shape()[1..], shape, "autoencoder: from {x:?}");
        out.copy_from_slice(y.data());
    };
    if pixels as u64 <= SMALL {
        out.data_mut().par_chunks_exact_mut(length).enumerate().for_each(one);
    } else {
        out.data_mut().chunks_exact_mut(length).enumerate().for_each(one);
    }
    out
}
