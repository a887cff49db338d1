use super::config::VisionConfig;
use super::tower::{LayerNorm, Shape, Tower};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::Linear;
use crate::ops::patchify::{self, Order, Patches};
use crate::ops::{copy, embedding, position};

/// Patch and position embedding, blocks, norm of the class token.
pub(super) struct VisionTower {
    /// `[1, width]`.
    class: Tensor,
    /// A convolution whose stride is its size, as a linear layer on patches.
    patches: Linear,
    patch: usize,
    positions: Tensor,
    pre_norm: LayerNorm,
    tower: Tower,
    post_norm: LayerNorm,
    image: usize,
}

impl VisionTower {
    pub fn load(scope: &Scope, config: &VisionConfig) -> Self {
        let VisionConfig { hidden_size: width, patch_size: patch, layer_norm_eps: eps, .. } = *config;
        let embeddings = scope.sub("embeddings");
        let grid = config.image_size / patch;
        let kernel = [width, config.num_channels, patch, patch];
        let convolution = embeddings.sub("patch_embedding").tensor("weight", &kernel);
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            layers: config.num_hidden_layers,
            act: config.hidden_act,
            eps,
            causal: false,
        };
        Self {
            class: embeddings.tensor("class_embedding", &[width]).reshape(&[1, width]),
            patches: Linear {
                weight: convolution.reshape(&[width, config.num_channels * patch * patch]),
                bias: None,
                fp8: None,
            },
            patch,
            positions: embeddings.sub("position_embedding").tensor("weight", &[grid * grid + 1, width]),
            // The misspelling is the checkpoints'.
            pre_norm: LayerNorm::load(&scope.sub("pre_layrnorm"), width, eps),
            tower: Tower::load(&scope.sub("encoder"), shape),
            post_norm: LayerNorm::load(&scope.sub("post_layernorm"), width, eps),
            image: config.image_size,
        }
    }

    /// `pixels` `[b, channels, image, image]` to the class token, `[b, width]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (width, channels, patch) = (self.patches.weight.dim(0), pixels.dim(1), self.patch);
        let (b, side) = (pixels.dim(0), self.image / patch);
        assert_eq!(pixels.shape(), [b, channels, self.image, self.image], "clip vision: pixels");
        let patches = Patches { channels, size: patch, grid: (side, side) };
        let pixels = &self.tower.activations(pixels.clone());
        let tokens = self.patches.forward(&patchify::forward(pixels, &patches, Order::ChannelFirst));
        let n = side * side;
        let mut x = pixels.scratch_like(&[b, n + 1, width]);
        let class = copy::cast(&embedding::forward(&vec![0; b], &self.class), x.dtype());
        copy::block_into(&mut x, 0, 0, &class.reshape(&[b, 1, width]));
        copy::block_into(&mut x, 1, 0, &tokens);
        position::add(&mut x, &self.positions, &[0]);

        let last = self.tower.forward(self.pre_norm.forward(&x)).last;
        let class_tokens: Vec<usize> = (0..b).map(|i| i * (n + 1)).collect();
        self.post_norm.forward(&copy::gather(&last.reshape(&[b * (n + 1), width]), &class_tokens))
    }
}
