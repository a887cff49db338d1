use crate::device::{Precision, Tensor};
use crate::models::Linear;
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::{copy, embedding, position};

/// How a vision transformer begins: patches as tokens after one that stands for the class, and their positions.
pub(super) struct PatchTokens {
    /// `[1, width]`.
    class: Tensor,
    /// A convolution whose stride is its size, as a linear layer on patches.
    patches: Linear,
    cut: Patches,
    /// `[1 + patches, width]`.
    positions: Tensor,
}

impl PatchTokens {
    /// From `class` `[.., width]`, a convolution's `kernel` `[width, channels, size, size]` and `bias`, and `positions`
    /// `[.., 1 + patches, width]`, which are of a square.
    pub fn new(class: Tensor, kernel: Tensor, bias: Option<Tensor>, positions: Tensor, precision: Precision) -> Self {
        let (width, channels, size) = (kernel.dim(0), kernel.dim(1), kernel.dim(2));
        let tokens = positions.len() / width;
        let grid = (tokens - 1).isqrt();
        Self {
            class: class.reshape(&[1, width]),
            patches: Linear::with(kernel.reshape(&[width, channels * size * size]), bias, precision),
            cut: Patches { channels, size, grid: (grid, grid) },
            positions: positions.reshape(&[tokens, width]),
        }
    }

    /// `pixels` `[b, channels, image, image]` to `[b, 1 + patches, width]`, in the type of the pixels.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (b, n, width) = (pixels.dim(0), self.cut.tokens(), self.class.dim(1));
        let tokens = self.patches.forward(&patchify::forward(pixels, &self.cut, Order::ChannelFirst));
        let mut x = pixels.scratch_like(&[b, n + 1, width]);
        let class = copy::cast(&embedding::forward(&vec![0; b], &self.class), x.dtype());
        copy::block_into(&mut x, 0, 0, &class.reshape(&[b, 1, width]));
        copy::block_into(&mut x, 1, 0, &tokens);
        position::add(&mut x, &self.positions, &[0]);
        x
    }
}
