use super::config::LanguageConfig;
use crate::device::{DType, Tensor};
use crate::io::Scope;
use crate::models::Linear;
use crate::ops::activation::{self, Activation};
use crate::ops::attention::{self, Heads, Mask, Part};
use crate::ops::linear::Then;
use crate::ops::{copy, embedding, rms_norm, rope};

/// Token ids around a picture.
#[derive(Clone, Debug, Default)]
pub struct Sentence {
    /// Before it.
    pub before: Vec<u32>,
    /// After it; not empty.
    pub after: Vec<u32>,
}

/// A LLaMA in which tokens of pictures have norms, keys and values of their own.
pub(super) struct Language {
    tokens: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
    config: LanguageConfig,
}

/// One for tokens of text, one for those of pictures.
type Two<T> = [T; 2];

struct Block {
    norm1: Two<Tensor>,
    q: Linear,
    k: Two<Linear>,
    v: Two<Linear>,
    out: Linear,
    norm2: Two<Tensor>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Which tokens of a sequence are of a picture.
#[derive(Clone, Copy)]
struct Picture {
    first: usize,
    count: usize,
}

impl Picture {
    /// The tokens of pictures in `x` `[b, n, width]`.
    fn of(self, x: &Tensor) -> Tensor {
        let (b, n, width) = (x.dim(0), x.dim(1), x.dim(2));
        let rows = x.clone().reshape(&[b, n * width]);
        copy::columns(&rows, self.first * width, self.count * width).reshape(&[b, self.count, width])
    }

    /// `of` the text for all tokens, and in the place of those of pictures `of` theirs.
    fn each<T>(self, x: &Tensor, two: &Two<T>, of: impl Fn(&T, &Tensor) -> Tensor) -> Tensor {
        let mut all = of(&two[0], x);
        copy::block_into(&mut all, self.first, 0, &of(&two[1], &self.of(x)));
        all
    }
}

impl Language {
    pub fn load(root: &Scope, config: &LanguageConfig) -> Self {
        let LanguageConfig { vocabulary, width, inner, .. } = *config;
        let model = root.sub("model");
        let block = |i: usize| {
            let layer = model.sub("layers").sub(i);
            let (attention, mlp) = (layer.sub("self_attn"), layer.sub("mlp"));
            let square = |name: &str| Linear::load(&attention.sub(name), width, width, false);
            let two = |name: &str| [0, 1].map(|i| square(&format!("{name}.multiway.{i}")));
            let norms = |name: &str| [0, 1].map(|i| layer.sub(name).sub("multiway").sub(i).tensor("weight", &[width]));
            Block {
                norm1: norms("input_layernorm"),
                q: square("q_proj"),
                k: two("k_proj"),
                v: two("v_proj"),
                out: square("o_proj"),
                norm2: norms("post_attention_layernorm"),
                gate: Linear::load(&mlp.sub("gate_proj"), width, inner, false),
                up: Linear::load(&mlp.sub("up_proj"), width, inner, false),
                down: Linear::load(&mlp.sub("down_proj"), inner, width, false),
            }
        };
        Self {
            tokens: model.sub("embed_tokens").stored("weight", &[vocabulary, width]),
            blocks: (0..config.layers).map(block).collect(),
            norm: model.sub("norm").tensor("weight", &[width]),
            head: root.sub("lm_head").stored("weight", &[vocabulary, width]),
            config: config.clone(),
        }
    }

    /// The logits of `next` after `sentence` with each picture of `seen` `[b, count, width]` in it; `[b, next]`, in f32.
    pub fn forward(&self, sentence: &Sentence, seen: &Tensor, next: &[u32]) -> Tensor {
        let (b, width) = (seen.dim(0), self.config.width);
        let picture = Picture { first: sentence.before.len(), count: seen.dim(1) };
        let n = picture.first + picture.count + sentence.after.len();
        let mut x = seen.scratch_like(&[b, n, width]);
        copy::block_into(&mut x, picture.first, 0, seen);
        for (first, ids) in [(0, &sentence.before), (picture.first + picture.count, &sentence.after)] {
            if !ids.is_empty() {
                let rows = embedding::forward(&ids.repeat(b), &self.tokens).reshape(&[b, ids.len(), width]);
                copy::block_into(&mut x, first, 0, &copy::cast(&rows, seen.dtype()));
            }
        }
        let x = self.blocks.iter().fold(x, |x, block| block.forward(&x, picture, &self.config));
        let last: Vec<usize> = (0..b).map(|i| (i + 1) * n - 1).collect();
        let last = rms_norm::forward(&copy::gather(&x.reshape(&[b * n, width]), &last), &self.norm, self.config.eps);
        // The few rows of the head that are asked for, in f32.
        let head = Linear { weight: embedding::forward(next, &self.head), bias: None, fp8: None };
        head.forward(&copy::cast(&last, DType::F32))
    }
}

impl Block {
    fn forward(&self, x: &Tensor, picture: Picture, config: &LanguageConfig) -> Tensor {
        let norm = |weight: &Tensor, x: &Tensor| rms_norm::forward(x, weight, config.eps);
        let y = picture.each(x, &self.norm1, norm);
        let mut q = self.q.forward(&y);
        let mut k = picture.each(&y, &self.k, Linear::forward);
        let v = picture.each(&y, &self.v, Linear::forward);
        rope::forward(&mut q, config.heads, config.theta);
        rope::forward(&mut k, config.heads, config.theta);
        let scale = 1.0 / ((config.width / config.heads) as f32).sqrt();
        let heads = Heads { count: config.heads, scale, compute: self.q.weight.multiplied_in() };
        let mask = Mask { causal: true, bias: None };
        let attended = attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, mask).out.remove(0);
        let x = self.out.then(&attended, Then::Add(x));

        let y = picture.each(&x, &self.norm2, norm);
        let mut hidden = self.gate.then(&y, Then::Activate(Activation::Silu));
        activation::multiply(&mut hidden, &self.up.forward(&y));
        self.down.then(&hidden, Then::Add(&x))
    }
}
