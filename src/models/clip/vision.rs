use super::config::VisionConfig;
use super::tower::{Kept, Shape, Tower, first_tokens};
use crate::device::{DType, Tensor};
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::linear::{self, InputGrad};
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
            patches: Linear::with(
                convolution.reshape(&[width, config.num_channels * patch * patch]),
                None,
                scope.precision(),
            ),
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
        let x = self.pre_norm.forward(&self.embed(pixels));
        self.post_norm.forward(&self.tower.first(x))
    }

    /// As [`VisionTower::forward`], and what [`VisionTower::backward`] starts from.
    pub fn kept(&self, pixels: &Tensor) -> (Tensor, Tape) {
        let embedded = self.embed(pixels);
        let (last, blocks) = self.tower.kept(self.pre_norm.forward(&embedded));
        let class = first_tokens(&last);
        (self.post_norm.forward(&class), Tape { embedded, blocks, class })
    }

    /// The gradient to the pixels, if `d` `[b, width]` is that to the class token.
    pub fn backward(&self, tape: &Tape, d: &Tensor) -> Tensor {
        let Tape { embedded, blocks, class } = tape;
        let (b, n, width) = (embedded.dim(0), embedded.dim(1), embedded.dim(2));
        let mut dclass = d.zeros_like(&[b, width]);
        self.post_norm.backward(&mut dclass, d, class);
        let mut dlast = d.zeros_like(&[b, n, width]);
        copy::block_into(&mut dlast, 0, 0, &dclass.reshape(&[b, 1, width]));
        let dx = self.tower.backward(blocks, dlast);
        let mut dembedded = d.zeros_like(&[b, n, width]);
        self.pre_norm.backward(&mut dembedded, &dx, embedded);

        let tokens: Vec<usize> = (0..b * n).filter(|row| row % n > 0).collect();
        let dtokens = copy::gather(&dembedded.reshape(&[b * n, width]), &tokens);
        let mut dpatches = d.scratch_like(&[b, n - 1, self.patches.weight.dim(1)]);
        linear::backward(&dtokens, &self.patches.weight, None, None, None, InputGrad::Overwrite(&mut dpatches));
        patchify::inverse(&dpatches, &self.cut(), Order::ChannelFirst)
    }

    fn cut(&self) -> Patches {
        let (side, size) = (self.image / self.patch, self.patch);
        Patches { channels: self.patches.weight.dim(1) / (size * size), size, grid: (side, side) }
    }

    /// Class and patches with their positions, `[b, 1 + patches, width]`.
    fn embed(&self, pixels: &Tensor) -> Tensor {
        let (width, patches) = (self.patches.weight.dim(0), self.cut());
        let (b, n) = (pixels.dim(0), patches.tokens());
        assert_eq!(pixels.shape(), [b, patches.channels, self.image, self.image], "clip vision: pixels");
        let pixels = &self.tower.activations(pixels.clone());
        let tokens = self.patches.forward(&patchify::forward(pixels, &patches, Order::ChannelFirst));
        let mut x = pixels.scratch_like(&[b, n + 1, width]);
        let class = copy::cast(&embedding::forward(&vec![0; b], &self.class), x.dtype());
        copy::block_into(&mut x, 0, 0, &class.reshape(&[b, 1, width]));
        copy::block_into(&mut x, 1, 0, &tokens);
        position::add(&mut x, &self.positions, &[0]);
        x
    }
}

/// What the backward needs of a forward.
pub struct Tape {
    embedded: Tensor,
    blocks: Vec<Kept>,
    class: Tensor,
}

impl Tape {
    /// The type of the activations.
    pub(super) fn activations(&self) -> DType {
        self.class.dtype()
    }
}
