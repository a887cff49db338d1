//! The encoder of T5 v1.1 (Raffel et al. 2020) in the layout of transformers' `T5EncoderModel`: SD3.5's third text
//! encoder. No attention mask: as in diffusers, padding is attended to.

mod config;
mod position;
#[cfg(test)]
mod tests;

use anyhow::Result;

use crate::device::{DType, Device, Tensor};
use crate::io::{Loader, Scope};
use crate::models::Linear;
use crate::models::source::Component;
use crate::ops;
use crate::ops::activation::Activation;
use crate::ops::affine::{self, Affine};
use crate::ops::attention::{Heads, Mask, Part};
use crate::ops::linear::{self, Then};

pub use config::T5Config;

/// The second name of the table of tokens, and what a whole T5 has besides its encoder.
const IGNORED: &[&str] = &["shared.weight", "encoder.embed_tokens.weight", "decoder.", "lm_head."];

/// What the input of the last layer of an MLP is times where that layer is computed in half precision.
const DOWN: f32 = 1.0 / 256.0;

/// The encoder.
pub struct T5 {
    config: T5Config,
    tokens: Tensor,
    /// `[buckets, heads]`; stored with the first block, used by all.
    distances: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
}

struct Block {
    norm1: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl T5 {
    /// The encoder `component`: in a folder, `config.json` and `model.safetensors`, or its shards.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is missing or not as expected.
    pub fn load(component: impl Into<Component>, device: &Device) -> Result<Self> {
        let component = component.into();
        let config = T5Config::load(&component)?;
        let file = component.weights("model")?;
        let loader = Loader::new(&file, IGNORED, device);
        let root = loader.root();
        let encoder = root.sub("encoder");
        // One table with two names, of which repacked files keep either.
        let tokens = if root.has("shared.weight") { root.sub("shared") } else { encoder.sub("embed_tokens") };
        let first = encoder.sub("block.0.layer.0.SelfAttention.relative_attention_bias");
        let t5 = Self {
            tokens: tokens.stored("weight", &[config.vocab_size, config.d_model]),
            distances: first.tensor("weight", &[config.relative_attention_num_buckets, config.num_heads]),
            blocks: (0..config.num_layers).map(|i| Block::load(&encoder.sub("block").sub(i), &config)).collect(),
            norm: encoder.sub("final_layer_norm").tensor("weight", &[config.d_model]),
            config,
        };
        loader.finish()?;
        Ok(t5)
    }

    /// What its weights are stored in, as its table of tokens is.
    pub fn dtype(&self) -> DType {
        self.tokens.dtype().computed()
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The last hidden state, `[b, n, d_model]`, of `b` rows of `n` ids, all below `vocab_size`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Tensor {
        let (b, n) = (ids.len(), ids.first().map_or(0, Vec::len));
        assert!(b > 0 && n > 0 && ids.iter().all(|row| row.len() == n), "t5: rows of unequal length");
        let bias = position::bias(&self.distances, n, self.config.relative_attention_max_distance);
        let x = ops::embedding::forward(&ids.concat(), &self.tokens);
        let mut x = ops::copy::cast(&x.reshape(&[b, n, self.config.d_model]), self.activations());
        for block in &self.blocks {
            x = block.forward(&x, &bias, &self.config);
        }
        ops::copy::cast(&ops::rms_norm::forward(&x, &self.norm, self.config.layer_norm_epsilon), DType::F32)
    }

    /// What activations are kept in: T5's are too large for half precision, but not for bfloat16.
    fn activations(&self) -> DType {
        match self.tokens.device().activations(self.blocks[0].q.weight.dtype()) {
            DType::Bf16 => DType::Bf16,
            _ => DType::F32,
        }
    }
}

impl Block {
    fn load(scope: &Scope, config: &T5Config) -> Self {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let (first, second) = (scope.sub("layer.0"), scope.sub("layer.1"));
        let (attention, mlp) = (first.sub("SelfAttention"), second.sub("DenseReluDense"));
        Self {
            norm1: first.sub("layer_norm").tensor("weight", &[width]),
            q: Linear::load(&attention.sub("q"), width, inner, false),
            k: Linear::load(&attention.sub("k"), width, inner, false),
            v: Linear::load(&attention.sub("v"), width, inner, false),
            o: Linear::load(&attention.sub("o"), inner, width, false),
            norm2: second.sub("layer_norm").tensor("weight", &[width]),
            gate: Linear::load(&mlp.sub("wi_0"), width, config.d_ff, false),
            up: Linear::load(&mlp.sub("wi_1"), width, config.d_ff, false),
            down: Linear::load(&mlp.sub("wo"), config.d_ff, width, false),
        }
    }

    /// `y = x + attention(norm1(x))`, then `y + down(gelu(gate(norm2(y)))·up(norm2(y)))`.
    fn forward(&self, x: &Tensor, bias: &Tensor, config: &T5Config) -> Tensor {
        let eps = config.layer_norm_epsilon;
        let y = ops::rms_norm::forward(x, &self.norm1, eps);
        let [q, k, v] = linear::forward_each(&y, [&self.q, &self.k, &self.v].map(|l| l.layer().into()));
        // T5 was trained without the usual 1/√d on the scores.
        let mask = Mask { causal: false, bias: Some(bias) };
        let heads = Heads { count: config.num_heads, scale: 1.0, compute: self.q.weight.dtype() };
        let attended = ops::attention::forward(&[Part { q: &q, k: &k, v: &v }], heads, mask);
        let x = self.o.then(&attended.out[0], Then::Add(x));

        let y = ops::rms_norm::forward(&x, &self.norm2, eps);
        let [mut gate, up] = linear::forward_each(&y, [&self.gate, &self.up].map(|l| l.layer().into()));
        ops::activation::forward(&mut gate, Activation::GeluTanh);
        ops::activation::multiply(&mut gate, &up);
        if gate.device().activations(self.down.weight.dtype()) != DType::F16 {
            return self.down.then(&gate, Then::Add(&x));
        }
        // The product's operands are rounded to half precision, whose range `gate` exceeds (transformers keeps this one layer
        // in single precision): a smaller one, exact but below 2^-16, which is nothing beside what is added to.
        let scaled = |x: &Tensor, scale| affine::forward(x, Affine { scale, ..Affine::default() });
        let mut y = scaled(&self.down.forward(&scaled(&gate, DOWN)), 1.0 / DOWN);
        ops::activation::add(&mut y, &x);
        y
    }
}
