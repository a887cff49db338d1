//! Between latents `[b, channels, h·p, w·p]` and tokens `[b, h·w, p·p·channels]`, one per patch of `p x p` pixels.

mod cpu;
mod cuda;
#[cfg(test)]
mod tests;

use super::dispatch;
use crate::device::Tensor;

/// How a latent is cut into tokens.
#[derive(Clone, Copy)]
pub struct Patches {
    /// Latent channels.
    pub channels: usize,
    /// Latent pixels per token and axis.
    pub size: usize,
    /// Tokens per column and row.
    pub grid: (usize, usize),
}

/// The order of the values inside a token.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// `(channel, y, x)`, as the weights of the patch convolution are stored.
    ChannelFirst,
    /// `(y, x, channel)`, as the output projection writes.
    ChannelLast,
}

impl Patches {
    /// Tokens per latent.
    pub fn tokens(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// Values per token.
    pub fn width(&self) -> usize {
        self.size * self.size * self.channels
    }

    fn latent_shape(&self, batch: usize) -> [usize; 4] {
        [batch, self.channels, self.grid.0 * self.size, self.grid.1 * self.size]
    }

    /// One token per pixel: the patches of a `[b, channels, h, w]` image that make it `[b, h·w, channels]`.
    pub fn pixels(image: &Tensor) -> Self {
        Self { channels: image.dim(1), size: 1, grid: (image.dim(2), image.dim(3)) }
    }
}

/// Latents to tokens. Pixels beyond the last whole patch are left out, as by a convolution.
pub fn forward(latent: &Tensor, patches: &Patches, order: Order) -> Tensor {
    let (least, found) = (patches.latent_shape(latent.dim(0)), latent.shape());
    let fits = found.len() == 4 && found[1] == least[1] && found[2] >= least[2] && found[3] >= least[3];
    assert!(fits, "patchify: {latent:?} for {least:?}");
    let mut out = latent.scratch_like(&[latent.dim(0), patches.tokens(), patches.width()]);
    dispatch!(latent, forward(&mut out, latent, patches, order));
    out
}

/// Tokens to latents: undoes [`forward`], and is the gradient of it.
pub fn inverse(tokens: &Tensor, patches: &Patches, order: Order) -> Tensor {
    assert_eq!(tokens.shape(), [tokens.dim(0), patches.tokens(), patches.width()], "patchify: inverse");
    let mut out = tokens.scratch_like(&patches.latent_shape(tokens.dim(0)));
    dispatch!(tokens, inverse(&mut out, tokens, patches, order));
    out
}
