use super::config::VisionConfig;
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::LayerNorm;
use crate::models::clip::HiddenAct;
use crate::models::clip::tower::{Shape, Tower};
use crate::models::patches::PatchTokens;

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Patches, norm, CLIP's blocks, norm of all tokens.
pub(super) struct VisionEncoder {
    patches: PatchTokens,
    pre_norm: LayerNorm,
    tower: Tower,
    post_norm: LayerNorm,
}

impl VisionEncoder {
    pub fn load(scope: &Scope, config: &VisionConfig) -> Self {
        let VisionConfig { width, inner, layers, heads, patch, grid, eps } = *config;
        let embeddings = scope.sub("embeddings");
        let shape = Shape { width, inner, heads, layers, act: HiddenAct::QuickGelu, eps, causal: false };
        Self {
            patches: PatchTokens::new(
                embeddings.tensor("cls_token", &[1, 1, width]),
                embeddings.sub("patch_embed").tensor("weight", &[width, CHANNELS, patch, patch]),
                None,
                embeddings.tensor("position_embedding", &[1, grid * grid + 1, width]),
                scope.precision(),
            ),
            pre_norm: LayerNorm::load(&embeddings.sub("pre_layernorm"), width, eps),
            tower: Tower::load(&scope.sub("encoder"), shape),
            post_norm: LayerNorm::load(&scope.sub("post_layernorm"), width, eps),
        }
    }

    /// `pixels` `[b, 3, image, image]` to all tokens, the class first, `[b, 1 + patches, width]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let x = self.patches.forward(&self.tower.activations(pixels.clone()));
        self.post_norm.forward(&self.tower.forward(self.pre_norm.forward(&x)).last)
    }
}
