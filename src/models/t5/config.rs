use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::models::config::{check_sizes, parse};
use crate::models::source::Component;

/// The keys of `T5Config` that shape the encoder; defaults as in transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Width inside an MLP.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads per block.
    pub num_heads: usize,
    /// Rows of the relative position table.
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all tokens are equally far.
    pub relative_attention_max_distance: usize,
    pub(super) layer_norm_epsilon: f32,
    feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
        }
    }
}

impl T5Config {
    /// The `config.json` of an encoder.
    pub(super) fn load(component: impl Into<Component>) -> Result<Self> {
        let (path, settings) = component.into().settings("config.json")?;
        let path = path.as_path();
        let config: Self = parse(path, "", settings)?;
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_ff", config.d_ff),
            ("d_kv", config.d_kv),
            ("num_heads", config.num_heads),
        ];
        check_sizes(path, "", &sizes, &[("num_layers", config.num_layers)])?;
        let path = path.display();
        ensure!(
            config.feed_forward_proj == "gated-gelu",
            "{path}: key 'feed_forward_proj' is \"{}\", only \"gated-gelu\" (T5 v1.1, as SD3.5 has) is supported",
            config.feed_forward_proj
        );
        let (buckets, distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        ensure!(
            buckets >= 4 && distance > buckets / 4,
            "{path}: relative_attention_num_buckets {buckets} and relative_attention_max_distance {distance} leave no \
             bucket for far tokens"
        );
        Ok(config)
    }
}
