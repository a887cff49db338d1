use super::config::VisionConfig;
use super::tower::{LayerNorm, Shape, Tower};
use crate::device::{Tensor, Weight};
use crate::io::Scope;
use crate::ops::cpu::gemm::{Epilogue, Mat, matmul};
use crate::ops::position;

/// Patch and position embedding, blocks, norm of the class token.
pub(super) struct VisionTower {
    class: Weight,
    /// `[width, channels, patch, patch]`: a convolution whose stride is its size.
    patches: Weight,
    positions: Weight,
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
            class: embeddings.tensor("class_embedding", &[width]),
            patches: embeddings.sub("patch_embedding").tensor("weight", &[width, config.num_channels, patch, patch]),
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
        let (width, channels, patch) = (self.patches.dim(0), self.patches.dim(1), self.patches.dim(2));
        let b = pixels.dim(0);
        assert_eq!(pixels.shape(), [b, channels, self.image, self.image], "clip vision: pixels");
        let rows = cut(pixels, patch);
        let (n, inner) = (rows.dim(1), rows.dim(2));

        // Every image's patches go straight to their place behind its class token.
        let mut x = Tensor::scratch(&[b, n + 1, width]);
        let class = self.class.to_f32();
        for (x, rows) in x.data_mut().chunks_exact_mut((n + 1) * width).zip(rows.data().chunks_exact(n * inner)) {
            let (first, rest) = x.split_at_mut(width);
            first.copy_from_slice(&class);
            matmul(rest, width, Mat::new(rows, n, inner), Mat::weight(&self.patches).t(), Epilogue::default());
        }
        position::add(&mut x, &self.positions, &[0]);

        let last = self.tower.forward(self.pre_norm.forward(&x)).last;
        let class_tokens: Vec<usize> = (0..b).map(|i| i * (n + 1)).collect();
        self.post_norm.forward(&last.reshape(&[b * (n + 1), width]).gather(&class_tokens))
    }
}

/// Cuts `x` `[b, c, h, w]` into patches, row by row: `[b, h/patch·w/patch, c·patch·patch]`. Pixels beyond the last
/// whole patch are left out, as by a convolution.
pub(super) fn cut(x: &Tensor, patch: usize) -> Tensor {
    let (b, c, h, w) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let (rows, cols) = (h / patch, w / patch);
    let mut out = Tensor::scratch(&[b, rows * cols, c * patch * patch]);
    let mut at = 0;
    let (from, to) = (x.data(), out.data_mut());
    for image in 0..b {
        for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
            for (channel, y) in (0..c).flat_map(|c| (0..patch).map(move |y| (c, y))) {
                let start = ((image * c + channel) * h + row * patch + y) * w + col * patch;
                to[at..at + patch].copy_from_slice(&from[start..start + patch]);
                at += patch;
            }
        }
    }
    out
}
