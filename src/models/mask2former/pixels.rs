use super::layers::{FeedForward, Normed, pixelwise, relu};
use super::position::{Kept, sines};
use super::{Config, EPS, HEADS, LEVELS, POINTS};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::deformable::{self, Pyramid};
use crate::ops::linear::Then;
use crate::ops::{activation, copy, position, resize};

/// What the pixel decoder gives.
pub(super) struct Features {
    /// The levels, the coarsest first, `[b, h·w, width]`.
    pub levels: Vec<Tensor>,
    /// Their heights and widths.
    pub sizes: Vec<[usize; 2]>,
    /// An embedding of every pixel at a quarter of the image's size, `[b, h/4, w/4, mask]`.
    pub masks: Tensor,
}

/// Attention over the three coarse levels at once, and one finer level made of the finest of them.
pub(super) struct PixelDecoder {
    inputs: Vec<Normed>,
    /// Added to the positions of each level, `[levels, width]`.
    levels: Tensor,
    positions: Kept,
    layers: Vec<Layer>,
    lateral: Normed,
    output: Normed,
    masks: Linear,
    width: usize,
}

/// Deformable attention, then an MLP, each normalised together with its shortcut.
struct Layer {
    offsets: Linear,
    weights: Linear,
    values: Linear,
    out: Linear,
    norm1: LayerNorm,
    mlp: FeedForward,
    norm2: LayerNorm,
}

impl PixelDecoder {
    pub fn load(scope: &Scope, config: &Config) -> Self {
        let (width, (layers, inner)) = (config.width, config.encoder);
        let stages: Vec<usize> = config.swin.stages.iter().map(|s| s.width).collect();
        let layer = |l: usize| {
            let under = scope.sub("encoder").sub("layers").sub(l);
            let attention = under.sub("self_attn");
            let shares = HEADS * LEVELS * POINTS;
            Layer {
                offsets: Linear::load(&attention.sub("sampling_offsets"), width, 2 * shares, true),
                weights: Linear::load(&attention.sub("attention_weights"), width, shares, true),
                values: Linear::load(&attention.sub("value_proj"), width, width, true),
                out: Linear::load(&attention.sub("output_proj"), width, width, true),
                norm1: LayerNorm::load(&under.sub("self_attn_layer_norm"), width, EPS),
                mlp: FeedForward::load(&under, width, inner),
                norm2: LayerNorm::load(&under.sub("final_layer_norm"), width, EPS),
            }
        };
        let input =
            |i: usize| Normed::load(&scope.sub("input_projections").sub(i), [stages[LEVELS - i], width], 1, true);
        Self {
            inputs: (0..LEVELS).map(input).collect(),
            levels: scope.tensor("level_embed", &[LEVELS, width]),
            positions: Kept::default(),
            layers: (0..layers).map(layer).collect(),
            lateral: Normed::load(&scope.sub("adapter_1"), [stages[0], width], 1, false),
            output: Normed::load(&scope.sub("layer_1"), [width, width], 3, false),
            masks: pixelwise(&scope.sub("mask_projection"), width, config.mask, true),
            width,
        }
    }

    /// The backbone's features `[b, h, w, c]`, the finest first.
    pub fn forward(&self, features: &[Tensor]) -> Features {
        let width = self.width;
        let coarse: Vec<Tensor> = features.iter().rev().zip(&self.inputs).map(|(x, conv)| conv.forward(x)).collect();
        let sizes: Vec<[usize; 2]> = coarse.iter().map(|x| [x.dim(1), x.dim(2)]).collect();
        let pyramid = Pyramid(&sizes);
        let (b, n) = (features[0].dim(0), pyramid.tokens());

        let device = features[0].device();
        let positions = self.positions.of(&sizes, &device, || {
            let level = self.levels.to_host();
            let of = |i| sines(sizes[i], width, &level[i * width..][..width]);
            let table: Vec<f32> = (0..LEVELS).flat_map(of).collect();
            vec![Tensor::from_slice(&device, &table, &[n, width])]
        });
        let mut x = features[0].scratch_like(&[b, n, width]);
        let mut first = 0;
        for (image, [h, w]) in coarse.into_iter().zip(&sizes) {
            copy::block_into(&mut x, first, 0, &image.reshape(&[b, h * w, width]));
            first += h * w;
        }
        for layer in &self.layers {
            x = layer.forward(&x, &positions[0], pyramid);
        }

        let mut first = 0;
        let level = |[h, w]: &[usize; 2]| {
            let mut level = x.scratch_like(&[b, h * w, width]);
            (0..b).for_each(|i| {
                copy::flat_into(&mut level, i * h * w * width, &x.view((i * n + first) * width, &[h * w, width]))
            });
            first += h * w;
            level
        };
        let levels: Vec<Tensor> = sizes.iter().map(level).collect();
        let ([h, w], fine) = (sizes[LEVELS - 1], &features[0]);
        let finest = levels[LEVELS - 1].clone().reshape(&[b, h, w, width]);
        let mut sum = self.lateral.forward(fine);
        activation::add(&mut sum, &resize::bilinear(&finest, fine.dim(1), fine.dim(2)));
        let masks = self.masks.forward(&relu(&self.output.forward(&sum)));
        Features { levels, sizes, masks }
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, positions: &Tensor, pyramid: Pyramid) -> Tensor {
        let mut placed = copy::owned(x);
        position::add(&mut placed, positions, &[0]);
        let (offsets, weights) = (self.offsets.forward(&placed), self.weights.forward(&placed));
        let attended = deformable::forward(&self.values.forward(x), &offsets, &weights, pyramid, HEADS);
        let x = self.norm1.forward(&self.out.then(&attended, Then::Add(x)));
        self.norm2.forward(&self.mlp.forward(&x))
    }
}
