use super::sizes::TextSizes;
use crate::device::Tensor;
use crate::io::Scope;
use crate::models::{LayerNorm, Linear};
use crate::ops::activation::Activation;
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::linear::Then;
use crate::ops::{copy, cross_attention, embedding, position};

/// What BERT adds to a variance.
const EPS: f32 = 1e-12;

/// BERT without token types, every block of which looks at the picture after it has looked at the text. Both in both directions:
/// without padding there is nothing to hide.
pub(super) struct TextEncoder {
    tokens: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
}

/// Norms come after the sums.
struct Block {
    own: Attention,
    cross: Attention,
    fc1: Linear,
    fc2: Linear,
    norm: LayerNorm,
}

/// Attention of a text to some sequence, added to the text and normalised.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl TextEncoder {
    /// `picture` is how wide its tokens are.
    pub fn load(scope: &Scope, sizes: &TextSizes, picture: usize) -> Self {
        let TextSizes { vocabulary, positions, width, inner, layers } = *sizes;
        let embeddings = scope.sub("embeddings");
        let block = |i: usize| {
            let layer = scope.sub("encoder.layer").sub(i);
            let output = layer.sub("output");
            Block {
                own: Attention::load(&layer.sub("attention"), sizes, width),
                cross: Attention::load(&layer.sub("crossattention"), sizes, picture),
                fc1: Linear::load(&layer.sub("intermediate.dense"), width, inner, true),
                fc2: Linear::load(&output.sub("dense"), inner, width, true),
                norm: LayerNorm::load(&output.sub("LayerNorm"), width, EPS),
            }
        };
        Self {
            tokens: embeddings.sub("word_embeddings").stored("weight", &[vocabulary, width]),
            positions: embeddings.sub("position_embeddings").tensor("weight", &[positions, width]),
            norm: LayerNorm::load(&embeddings.sub("LayerNorm"), width, EPS),
            blocks: (0..layers).map(block).collect(),
        }
    }

    /// `ids` are `b` rows of equal length, `picture` `[b, m, ..]`; returns the first token of each text, `[b, width]`.
    pub fn forward(&self, ids: &[Vec<u32>], picture: &Tensor) -> Tensor {
        let (b, n, width) = (ids.len(), ids.first().map_or(0, Vec::len), self.tokens.dim(1));
        assert!(n > 0 && ids.iter().all(|row| row.len() == n), "blip text: rows of unequal length");
        assert!(n <= self.positions.dim(0), "blip text: {n} tokens, {} positions", self.positions.dim(0));
        let mut x =
            copy::cast(&embedding::forward(&ids.concat(), &self.tokens), picture.dtype()).reshape(&[b, n, width]);
        position::add(&mut x, &self.positions, &[0]);
        let x = self.blocks.iter().fold(self.norm.forward(&x), |x, block| block.forward(&x, picture));
        let first: Vec<usize> = (0..b).map(|i| i * n).collect();
        copy::gather(&x.reshape(&[b * n, width]), &first)
    }
}

impl Block {
    fn forward(&self, x: &Tensor, picture: &Tensor) -> Tensor {
        let x = self.own.forward(x, None);
        let x = self.cross.forward(&x, Some(picture));
        let hidden = self.fc1.then(&x, Then::Activate(Activation::GeluErf));
        self.norm.forward(&self.fc2.then(&hidden, Then::Add(&x)))
    }
}

impl Attention {
    fn load(scope: &Scope, sizes: &TextSizes, source: usize) -> Self {
        let width = sizes.width;
        let (inputs, output) = (scope.sub("self"), scope.sub("output"));
        Self {
            q: Linear::load(&inputs.sub("query"), width, width, true),
            k: Linear::load(&inputs.sub("key"), source, width, true),
            v: Linear::load(&inputs.sub("value"), source, width, true),
            out: Linear::load(&output.sub("dense"), width, width, true),
            norm: LayerNorm::load(&output.sub("LayerNorm"), width, EPS),
            heads: sizes.heads(),
        }
    }

    /// `norm(x + attention(x to source))`; without a source, to itself.
    fn forward(&self, x: &Tensor, source: Option<&Tensor>) -> Tensor {
        let seen = source.unwrap_or(x);
        let (q, k, v) = (self.q.forward(x), self.k.forward(seen), self.v.forward(seen));
        let scale = 1.0 / ((q.width() / self.heads) as f32).sqrt();
        let heads = Heads { count: self.heads, scale, compute: self.q.weight.multiplied_in() };
        let attended = match source {
            Some(_) => cross_attention::forward(&q, &k, &v, heads, None),
            None => attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, Mask::default()).out.remove(0),
        };
        self.norm.forward(&self.out.then(&attended, Then::Add(x)))
    }
}
