use super::sizes::VisionSizes;
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::LayerNorm;
use crate::models::clip::HiddenAct;
use crate::models::clip::tower::{Shape, Tower};
use crate::models::patches::PatchTokens;

/// What timm's vision transformers add to a variance.
const EPS: f32 = 1e-6;
/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Patches, CLIP's blocks, norm of all tokens.
pub(super) struct VisionEncoder {
    patches: PatchTokens,
    tower: Tower,
    norm: LayerNorm,
}

impl VisionEncoder {
    pub fn load(scope: &Scope, sizes: &VisionSizes) -> Self {
        let VisionSizes { width, inner, layers, patch, grid } = *sizes;
        let proj = scope.sub("patch_embed").sub("proj");
        let shape = Shape { width, inner, heads: sizes.heads(), layers, act: HiddenAct::Gelu, eps: EPS, causal: false };
        Self {
            patches: PatchTokens::new(
                scope.tensor("cls_token", &[1, 1, width]),
                proj.tensor("weight", &[width, CHANNELS, patch, patch]),
                Some(proj.tensor("bias", &[width])),
                scope.tensor("pos_embed", &[1, grid * grid + 1, width]),
                scope.precision(),
            ),
            tower: Tower::load(scope, shape),
            norm: LayerNorm::load(&scope.sub("norm"), width, EPS),
        }
    }

    /// `pixels` `[b, 3, image, image]` to all tokens, the class first, `[b, 1 + patches, width]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let x = self.patches.forward(&self.tower.activations(pixels.clone()));
        self.norm.forward(&self.tower.forward(x).last)
    }
}
