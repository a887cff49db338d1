use super::sizes::VisionSizes;
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::clip::HiddenAct;
use crate::models::clip::tower::{Shape, Tower};
use crate::models::{LayerNorm, Linear};
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::{copy, embedding, position};

/// What timm's vision transformers add to a variance.
const EPS: f32 = 1e-6;
/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Patch and position embedding, CLIP's blocks, norm of all tokens.
pub(super) struct VisionEncoder {
    /// `[1, width]`.
    class: Tensor,
    /// A convolution whose stride is its size, as a linear layer on patches.
    patches: Linear,
    cut: Patches,
    /// `[1 + patches, width]`.
    positions: Tensor,
    tower: Tower,
    norm: LayerNorm,
}

impl VisionEncoder {
    pub fn load(scope: &Scope, sizes: &VisionSizes) -> Self {
        let VisionSizes { width, inner, layers, patch, grid } = *sizes;
        let proj = scope.sub("patch_embed").sub("proj");
        let kernel = proj.tensor("weight", &[width, CHANNELS, patch, patch]);
        let shape = Shape { width, inner, heads: sizes.heads(), layers, act: HiddenAct::Gelu, eps: EPS, causal: false };
        let tokens = grid * grid + 1;
        Self {
            class: scope.tensor("cls_token", &[1, 1, width]).reshape(&[1, width]),
            patches: Linear::with(
                kernel.reshape(&[width, CHANNELS * patch * patch]),
                Some(proj.tensor("bias", &[width])),
                scope.precision(),
            ),
            cut: Patches { channels: CHANNELS, size: patch, grid: (grid, grid) },
            positions: scope.tensor("pos_embed", &[1, tokens, width]).reshape(&[tokens, width]),
            tower: Tower::load(scope, shape),
            norm: LayerNorm::load(&scope.sub("norm"), width, EPS),
        }
    }

    /// `pixels` `[b, 3, image, image]` to all tokens, the class first, `[b, 1 + patches, width]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (b, n, width) = (pixels.dim(0), self.cut.tokens(), self.class.dim(1));
        let pixels = &self.tower.activations(pixels.clone());
        let tokens = self.patches.forward(&patchify::forward(pixels, &self.cut, Order::ChannelFirst));
        let mut x = pixels.scratch_like(&[b, n + 1, width]);
        let class = copy::cast(&embedding::forward(&vec![0; b], &self.class), x.dtype());
        copy::block_into(&mut x, 0, 0, &class.reshape(&[b, 1, width]));
        copy::block_into(&mut x, 1, 0, &tokens);
        position::add(&mut x, &self.positions, &[0]);
        self.norm.forward(&self.tower.forward(x).last)
    }
}
