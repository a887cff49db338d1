//! Between latents `[b, channels, h·p, w·p]` and tokens `[b, h·w, p·p·channels]`, one per patch of `p x p` pixels.

mod cpu;
#[cfg(test)]
mod tests;

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
}

/// Latents to tokens.
pub fn forward(latent: &Tensor, patches: &Patches, order: Order) -> Tensor {
    assert_eq!(latent.shape(), patches.latent_shape(latent.dim(0)), "patchify");
    cpu::forward(latent, patches, order)
}

/// Tokens to latents: undoes [`forward`], and is the gradient of it.
pub fn inverse(tokens: &Tensor, patches: &Patches, order: Order) -> Tensor {
    assert_eq!(tokens.shape(), [tokens.dim(0), patches.tokens(), patches.width()], "patchify: inverse");
    cpu::inverse(tokens, patches, order)
}
