//! The image autoencoder of Stable Diffusion (`AutoencoderKL` of diffusers): forward, and backward of the decoder to the latent.

mod block;
mod config;

use std::ops::Range;

use anyhow::Result;

use self::block::{Block, Conv, Level, Mid, Norm, Resize};
use crate::device::{DType, Device, Precision, Tensor};
use crate::io::{Loader, Scope};
use crate::models::source::Component;
use crate::ops::affine::{self, Affine};
use crate::ops::copy;
use crate::ops::patchify::{self, Order, Patches};

pub use self::config::Config;

/// Pixels that are at work at the same time: several small images, whose activations stay in cache, or one large one.
/// Component of what memory a batch takes, not of its results.
const AT_ONCE: usize = 128 * 128;

/// The Gaussian an image is encoded to, `[b, c, h, w]` each.
pub struct Posterior {
    /// Its mean, which is also its mode.
    pub mean: Tensor,
    /// The logarithm of its variance, limited to -30..20.
    pub logvar: Tensor,
}

/// The autoencoder with its frozen weights.
pub struct Autoencoder {
    config: Config,
    device: Device,
    activations: DType,
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

    /// `[b, h, w, in]` to `[b, h', w', 2c]`.
    fn forward(&self, image: &Tensor) -> Tensor {
        let blocks = self.levels.iter().flat_map(Level::blocks).chain(self.mid.blocks());
        let x = blocks.fold(self.conv_in.forward(image, None), |x, block| block.forward(&x));
        let x = self.conv_out.single(&self.norm_out.forward(&x, true));
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

    /// `[b, h, w, c]` to `[b, h', w', out]`.
    fn forward(&self, latent: &Tensor) -> Tensor {
        self.last(&self.blocks().fold(self.first(latent), |x, block| block.forward(&x)))
    }

    /// [`Decoder::forward`], and the input of every block and of the last normalisation: all that [`Decoder::backward`] needs.
    fn kept(&self, latent: &Tensor) -> (Tensor, Vec<Tensor>) {
        let mut kept = vec![self.first(latent)];
        for block in self.blocks() {
            kept.push(block.forward(kept.last().expect("the first at least")));
        }
        (self.last(kept.last().expect("the first at least")), kept)
    }

    /// The gradient to the latent, if `d` is that to the result. What is kept goes as it has been used.
    fn backward(&self, mut kept: Vec<Tensor>, d: &Tensor) -> Tensor {
        let x = kept.pop().expect("the first at least");
        let mut dx = x.zeros_like(x.shape());
        self.norm_out.backward(&mut dx, &self.conv_out.backward(&copy::cast(d, x.dtype()), None), &x, true);
        drop(x);
        for block in self.blocks().collect::<Vec<_>>().into_iter().rev() {
            dx = block.backward(&kept.pop().expect("one for each block"), dx);
        }
        let d = self.conv_in.backward(&dx, None);
        self.post_quant.as_ref().map(|conv| conv.backward(&d, None)).unwrap_or(d)
    }

    fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        self.mid.blocks().chain(self.levels.iter().flat_map(Level::blocks))
    }

    /// What the first block takes.
    fn first(&self, latent: &Tensor) -> Tensor {
        match &self.post_quant {
            Some(conv) => self.conv_in.forward(&conv.forward(latent, None), None),
            None => self.conv_in.forward(latent, None),
        }
    }

    /// The image, of what the last block gives.
    fn last(&self, x: &Tensor) -> Tensor {
        self.conv_out.single(&self.norm_out.forward(x, true))
    }
}

impl Autoencoder {
    /// Maps the weights of `component` (`vae/` of a pipeline); `precision` as for [`load_network`](super::load_network),
    /// but that f16 is as it is stored.
    ///
    /// On a GPU, activations beside weights in bf16 are in bf16, which has the range of f32; what is normalised is summed in
    /// single precision, and what comes out is in it. Beside weights in f16 they stay in f32: some autoencoders (SDXL's) have
    /// activations beyond 65,504, and are black or not numbers in f16.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing, misshapen or impossible.
    pub fn load(component: impl Into<Component>, device: &Device, precision: impl Into<Precision>) -> Result<Self> {
        let component = component.into();
        let precision = match precision.into() {
            Precision::Half(DType::F16) => Precision::Stored,
            other => other,
        };
        let config = Config::load(&component)?;
        let file = component.weights("diffusion_pytorch_model")?;
        let loader = Loader::new(&file, &[], device).precision(precision);
        let root = loader.root();
        let (encoder, decoder) = (Encoder::load(&root, &config), Decoder::load(&root, &config));
        loader.finish()?;
        let activations = match device.activations(decoder.conv_in.dtype()) {
            DType::F16 => DType::F32,
            other => other,
        };
        Ok(Self { config, device: device.clone(), activations, encoder, decoder })
    }

    /// Its sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Images `[b, H, W, 3]` in about -1..1, in single precision, from latents `[b, c, h, w]` as the diffusion model has them;
    /// `H = h ·` [`Config::downscale`].
    pub fn decode(&self, latent: &Tensor) -> Tensor {
        let pixels = self.pixels(latent);
        self.in_parts(latent, pixels, |x| self.decoder.forward(&self.unscaled(x)))
    }

    /// The gradient to latents `[b, c, h, w]` of a number that is made of their pictures, in single precision: `of` says, for the
    /// pictures of a range of the latents, as [`Autoencoder::decode`] makes them, the gradient to those. What an image needs
    /// does not depend on the others.
    ///
    /// The decoder keeps the input of each of its blocks, of a few pictures at a time: for one of 512 pixels of SD3.5 1.1 GB in
    /// single precision; what is inside the blocks is computed again.
    ///
    /// # Errors
    /// What `of` reports.
    pub fn gradient(
        &self,
        latent: &Tensor,
        mut of: impl FnMut(Range<usize>, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (images, count) = (latent.dim(0), at_once(self.pixels(latent)));
        let map = Affine { scale: 1.0 / self.config.scaling_factor, ..Affine::default() };
        let mut all = Tensor::scratch(&latent.device(), latent.shape());
        for first in (0..images).step_by(count) {
            let part = first..(first + count).min(images);
            let (pictures, kept) = self.decoder.kept(&self.unscaled(&latent.slice(part.clone())));
            let d = of(part, &pictures)?;
            assert_eq!(d.shape(), pictures.shape(), "the gradient to pictures");
            drop(pictures);
            let d = copy::cast(&self.decoder.backward(kept, &d), DType::F32);
            copy::rows_into(&mut all, first, &affine::forward(&pixels_first(&d), map));
        }
        Ok(all)
    }

    /// Of the picture of a latent.
    fn pixels(&self, latent: &Tensor) -> usize {
        assert_eq!(latent.dim(1), self.config.latent_channels, "decode: latent {latent:?}");
        latent.dim(2) * latent.dim(3) * self.config.downscale().pow(2)
    }

    /// Latents `[b, c, h, w]` as the decoder takes them.
    fn unscaled(&self, latent: &Tensor) -> Tensor {
        let (scale, after) = (1.0 / self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0));
        let map = Affine { scale, after, ..Affine::default() };
        copy::cast(&affine::forward(&pixels_last(&copy::cast(latent, DType::F32)), map), self.activations)
    }

    /// The latent distribution of images `[b, H, W, 3]` in -1..1, on the scale of the autoencoder itself, in single
    /// precision.
    pub fn encode(&self, image: &Tensor) -> Posterior {
        let (c, latent) = (&self.config, self.config.latent_channels);
        assert_eq!(image.dim(3), c.in_channels, "encode: image {image:?}");
        let pixels = image.dim(1) * image.dim(2);
        let both = self.in_parts(image, pixels, |x| self.encoder.forward(&copy::cast(x, self.activations)));
        let part = |first: usize| pixels_first(&copy::columns(&both, first, latent));
        let logvar = affine::forward(&part(latent), Affine { limits: [-30.0, 20.0], ..Affine::default() });
        Posterior { mean: part(0), logvar }
    }

    /// Applies `f` to as many entries of `x` at a time as [`AT_ONCE`] says, for images of `pixels`.
    fn in_parts(&self, x: &Tensor, pixels: usize, f: impl Fn(&Tensor) -> Tensor + Sync + Send) -> Tensor {
        let (images, count) = (x.dim(0), at_once(pixels));
        let parts: Vec<Tensor> =
            (0..images).step_by(count).map(|first| x.slice(first..(first + count).min(images))).collect();
        let f = |x: &Tensor| self.device.region(|| f(x));
        // Large images are work enough for all threads one by one.
        let done: Vec<Tensor> =
            if count > 1 { self.device.side_by_side(parts, |x| f(&x)) } else { parts.iter().map(f).collect() };
        copy::concat(&done.iter().collect::<Vec<_>>())
    }
}

/// How many images of `pixels` are at work at the same time.
fn at_once(pixels: usize) -> usize {
    (AT_ONCE / pixels.max(1)).max(1)
}

/// `[b, c, h, w]` to `[b, h, w, c]`.
fn pixels_last(x: &Tensor) -> Tensor {
    let tokens = patchify::forward(x, &Patches::pixels(x), Order::ChannelLast);
    tokens.reshape(&[x.dim(0), x.dim(2), x.dim(3), x.dim(1)])
}

/// `[b, h, w, c]` to `[b, c, h, w]`.
fn pixels_first(x: &Tensor) -> Tensor {
    let patches = Patches { channels: x.dim(3), size: 1, grid: (x.dim(1), x.dim(2)) };
    patchify::inverse(&x.clone().reshape(&[x.dim(0), x.dim(1) * x.dim(2), x.dim(3)]), &patches, Order::ChannelLast)
}
