use super::layers::{FeedForward, relu};
use super::pixels::Features;
use super::position::{Kept, sines};
use super::{Config, EPS, Found, HEADS, LEVELS};
use crate::device::{DType, Tensor};
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::linear::{self, Layer as Weights, Then};
use crate::ops::{copy, cross_attention, position, resize};

/// The queries and the layers they go through, each of which looks at one level, the coarsest first, then from there on again.
pub(super) struct Decoder {
    /// `[queries, width]`.
    queries: Tensor,
    /// Added to queries wherever they are compared, `[queries, width]`.
    places: Tensor,
    /// Added to each level, `[levels, width]`.
    levels: Tensor,
    positions: Kept,
    layers: Vec<Layer>,
    norm: LayerNorm,
    classes: Linear,
    masks: [Linear; 3],
    width: usize,
}

/// Attention to the pixels of one's own mask, attention of the queries among themselves, and an MLP, each normalised together
/// with its shortcut.
struct Layer {
    cross: [Linear; 3],
    cross_out: Linear,
    norm1: LayerNorm,
    own: [Linear; 3],
    own_out: Linear,
    norm2: LayerNorm,
    mlp: FeedForward,
    norm3: LayerNorm,
}

impl Layer {
    fn load(scope: &Scope, width: usize, inner: usize) -> Self {
        let (cross, own) = (scope.sub("cross_attn"), scope.sub("self_attn"));
        // Queries, keys and values in one.
        let weight = cross.tensor("in_proj_weight", &[3 * width, width]);
        let bias = cross.tensor("in_proj_bias", &[3 * width]);
        let third = |i: usize| Linear {
            weight: weight.slice(i * width..(i + 1) * width),
            bias: Some(bias.slice(i * width..(i + 1) * width)),
            fp8: None,
        };
        let square = |scope: &Scope, name: &str| Linear::load(&scope.sub(name), width, width, true);
        Self {
            cross: [0, 1, 2].map(third),
            cross_out: square(&cross, "out_proj"),
            norm1: LayerNorm::load(&scope.sub("cross_attn_layer_norm"), width, EPS),
            own: ["q_proj", "k_proj", "v_proj"].map(|name| square(&own, name)),
            own_out: square(&own, "out_proj"),
            norm2: LayerNorm::load(&scope.sub("self_attn_layer_norm"), width, EPS),
            mlp: FeedForward::load(scope, width, inner),
            norm3: LayerNorm::load(&scope.sub("final_layer_norm"), width, EPS),
        }
    }

    /// `queries` `[b, m, width]` with their places, a level's pixels `[b, n, width]` and the same with their positions, and
    /// which of them each query sees.
    fn forward(&self, queries: &Tensor, places: &Tensor, [level, placed]: [&Tensor; 2], sees: &Tensor) -> Tensor {
        let with_places = |x: &Tensor| {
            let mut x = copy::owned(x);
            position::add(&mut x, places, &[0]);
            x
        };
        let scale = 1.0 / ((queries.dim(2) / HEADS) as f32).sqrt();
        let heads = Heads { count: HEADS, scale, compute: self.own_out.weight.dtype() };
        let [q, k, v] = &self.cross;
        let (q, k, v) = (q.forward(&with_places(queries)), k.forward(placed), v.forward(level));
        let attended = cross_attention::forward(&q, &k, &v, heads, Some(sees));
        let x = self.norm1.forward(&self.cross_out.then(&attended, Then::Add(queries)));

        let [q, k, v] = &self.own;
        let at_places = with_places(&x);
        let (q, k, v) = (q.forward(&at_places), k.forward(&at_places), v.forward(&x));
        let attended = attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, Mask::default());
        let x = self.norm2.forward(&self.own_out.then(&attended.out[0], Then::Add(&x)));
        self.norm3.forward(&self.mlp.forward(&x))
    }
}

impl Decoder {
    /// What is under `scope`, and the layer `classes`.
    pub fn load(scope: &Scope, classes: &Scope, config: &Config) -> Self {
        let (width, (layers, inner)) = (config.width, config.decoder);
        let decoder = scope.sub("decoder");
        let embedder = decoder.sub("mask_predictor").sub("mask_embedder");
        let mask = |i: usize, outputs: usize| Linear::load(&embedder.sub(i).sub("0"), width, outputs, true);
        let table = |name: &str, rows: usize| scope.sub(name).tensor("weight", &[rows, width]);
        Self {
            queries: copy::cast(&table("queries_features", config.queries), DType::F32),
            places: table("queries_embedder", config.queries),
            levels: table("level_embed", LEVELS),
            positions: Kept::default(),
            layers: (0..layers).map(|l| Layer::load(&decoder.sub("layers").sub(l), width, inner)).collect(),
            norm: LayerNorm::load(&decoder.sub("layernorm"), width, EPS),
            classes: Linear::load(classes, width, config.classes + 1, true),
            masks: [mask(0, width), mask(1, width), mask(2, config.mask)],
            width,
        }
    }

    pub fn forward(&self, features: &Features) -> Found {
        let (b, width) = (features.masks.dim(0), self.width);
        let (on, none) = (features.masks.device(), vec![0.0; width]);
        let table =
            |size: &[usize; 2]| Tensor::from_slice(&on, &sines(*size, width, &none), &[size[0] * size[1], width]);
        let make = || features.sizes.iter().map(table).collect();
        let positions = self.positions.of(&features.sizes, &on, make);
        let level = |i: usize| {
            let (mut level, n) = (copy::owned(&features.levels[i]), features.levels[i].dim(1));
            position::add(&mut level, &repeated(&self.levels.slice(i..i + 1), n), &[0]);
            let mut placed = copy::owned(&level);
            position::add(&mut placed, &positions[i], &[0]);
            [level, placed]
        };
        let levels: Vec<[Tensor; 2]> = (0..LEVELS).map(level).collect();
        let mut x = repeated(&self.queries.clone().reshape(&[1, self.queries.len()]), b).reshape(&[
            b,
            self.queries.dim(0),
            width,
        ]);
        // What a query sees of a level is its mask in the level's size: a sum of products, so that it does not matter whether
        // these or the embeddings are resized, but for the work.
        let coarse: Vec<Tensor> =
            features.sizes.iter().map(|[h, w]| resize::bilinear(&features.masks, *h, *w)).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            let [level, placed] = &levels[i % LEVELS];
            let sees = self.masks(&self.norm.forward(&x), &coarse[i % LEVELS]);
            let sees = sees.clone().reshape(&[b, level.dim(1), sees.width()]);
            x = layer.forward(&x, &self.places, [level, placed], &sees);
        }
        let normed = self.norm.forward(&x);
        Found { classes: self.classes.forward(&normed), masks: self.masks(&normed, &features.masks) }
    }

    /// For every pixel, of which the embeddings are `[b, h, w, mask]`, how much it is of each query, `[b, h, w, queries]`: the
    /// products of their embeddings.
    fn masks(&self, normed: &Tensor, pixels: &Tensor) -> Tensor {
        let [first, second, third] = &self.masks;
        let embeddings = third.forward(&relu(&second.forward(&relu(&first.forward(normed)))));
        let &[b, h, w, width] = pixels.shape() else { unreachable!("images") };
        let queries = embeddings.dim(1);
        let mut masks = pixels.scratch_like(&[b, h * w, queries]);
        for i in 0..b {
            let weight = embeddings.slice(i..i + 1).reshape(&[queries, width]);
            let of_image = pixels.slice(i..i + 1).reshape(&[h * w, width]);
            let product = linear::forward(&of_image, Weights { weight: &weight, bias: None }, Then::Nothing);
            copy::flat_into(&mut masks, i * h * w * queries, &product);
        }
        masks.reshape(&[b, h, w, queries])
    }
}

/// `n` times the row `x` `[1, d]`.
fn repeated(x: &Tensor, n: usize) -> Tensor {
    copy::gather(x, &vec![0; n])
}
