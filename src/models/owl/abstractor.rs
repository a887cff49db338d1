use super::config::{AbstractorConfig, OwlConfig};
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::activation::{self, Activation};
use crate::ops::attention::Heads;
use crate::ops::linear::Then;
use crate::ops::{copy, cross_attention, embedding, position};

/// PyTorch's own, which the authors leave the outer norms at.
const EPS: f32 = 1e-5;

/// Learned queries that look at a picture, and what brings them to the width of the language model.
pub(super) struct Abstractor {
    /// `[1, queries·width]`.
    queries: Tensor,
    blocks: Vec<Block>,
    out: Linear,
    /// Ends every picture, `[1, width of the language model]`.
    end: Tensor,
    config: AbstractorConfig,
}

/// Attention of the queries to themselves and the picture, and a gated MLP.
struct Block {
    norm_queries: LayerNorm,
    norm_picture: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    /// Added to the queries wherever they are looked for or looked at, not to what they are worth; `[queries, width]`.
    positions: Tensor,
    /// The same of the picture, `[tokens, width]`.
    picture_positions: Tensor,
    out: Linear,
    norm: LayerNorm,
    gate: Linear,
    up: Linear,
    norm_inner: LayerNorm,
    down: Linear,
}

impl Abstractor {
    pub fn load(scope: &Scope, config: &OwlConfig) -> Self {
        let (of, picture, language) = (&config.abstractor, &config.vision, config.language.width);
        let queries = scope.tensor("query_embeds", &[1, of.queries, of.width]);
        let tokens = picture.grid * picture.grid + 1;
        let block = |i: usize| {
            Block::load(&scope.sub("encoder.layers").sub(i).sub("crossattention"), of, [tokens, picture.width])
        };
        Self {
            queries: queries.reshape(&[1, of.queries * of.width]),
            blocks: (0..of.layers).map(block).collect(),
            out: Linear::load(&scope.sub("visual_fc"), of.width, language, true),
            end: scope.tensor("vit_eos", &[1, 1, language]).reshape(&[1, language]),
            config: of.clone(),
        }
    }

    /// `picture` `[b, tokens, ..]` to `[b, queries + 1, width of the language model]`.
    pub fn forward(&self, picture: &Tensor) -> Tensor {
        let (b, AbstractorConfig { queries, width, .. }) = (picture.dim(0), &self.config);
        let first = copy::cast(&embedding::forward(&vec![0; b], &self.queries), picture.dtype());
        let x = first.reshape(&[b, *queries, *width]);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, picture, &self.config));
        let tokens = self.out.forward(&x);
        let end = copy::cast(&embedding::forward(&vec![0; b], &self.end), tokens.dtype());
        joined(&tokens, &end.reshape(&[b, 1, tokens.dim(2)]))
    }
}

impl Block {
    fn load(scope: &Scope, config: &AbstractorConfig, [tokens, picture]: [usize; 2]) -> Self {
        let AbstractorConfig { queries, width, inner, eps, .. } = *config;
        let (attention, output) = (scope.sub("attention"), scope.sub("output"));
        let mlp = output.sub("mlp");
        Self {
            norm_queries: LayerNorm::load(&scope.sub("norm1"), width, EPS),
            norm_picture: LayerNorm::load(&scope.sub("normk"), picture, EPS),
            q: Linear::load(&attention.sub("query"), width, width, true),
            k: Linear::load(&attention.sub("key"), picture, width, true),
            v: Linear::load(&attention.sub("value"), picture, width, true),
            positions: attention.tensor("q_pos_embed", &[queries, width]),
            picture_positions: attention.tensor("k_pos_embed", &[tokens, picture]),
            out: Linear::load(&output.sub("out_proj"), width, width, true),
            norm: LayerNorm::load(&output.sub("norm2"), width, EPS),
            gate: Linear::load(&mlp.sub("w1"), width, inner, true),
            up: Linear::load(&mlp.sub("w3"), width, inner, true),
            norm_inner: LayerNorm::load(&mlp.sub("ffn_ln"), inner, eps),
            down: Linear::load(&mlp.sub("w2"), inner, width, true),
        }
    }

    fn forward(&self, x: &Tensor, picture: &Tensor, config: &AbstractorConfig) -> Tensor {
        let (x, picture) = (self.norm_queries.forward(x), self.norm_picture.forward(picture));
        let placed = place(&x, &self.positions);
        let keys = joined(&placed, &place(&picture, &self.picture_positions));
        let (q, k, v) = (self.q.forward(&placed), self.k.forward(&keys), self.v.forward(&joined(&x, &picture)));
        let scale = 1.0 / ((x.dim(2) / config.heads) as f32).sqrt();
        let heads = Heads { count: config.heads, scale, compute: self.q.weight.multiplied_in() };
        let x = self.out.then(&cross_attention::forward(&q, &k, &v, heads, None), Then::Add(&x));

        let y = self.norm.forward(&x);
        let mut hidden = self.gate.then(&y, Then::Activate(Activation::Silu));
        activation::multiply(&mut hidden, &self.up.forward(&y));
        self.down.then(&self.norm_inner.forward(&hidden), Then::Add(&x))
    }
}

/// `x` with `positions` added.
fn place(x: &Tensor, positions: &Tensor) -> Tensor {
    let mut placed = copy::owned(x);
    position::add(&mut placed, positions, &[0]);
    placed
}

/// The tokens of `a`, then those of `b`, which is as wide.
fn joined(a: &Tensor, b: &Tensor) -> Tensor {
    let mut all = a.scratch_like(&[a.dim(0), a.dim(1) + b.dim(1), a.dim(2)]);
    copy::block_into(&mut all, 0, 0, a);
    copy::block_into(&mut all, a.dim(1), 0, b);
    all
}
