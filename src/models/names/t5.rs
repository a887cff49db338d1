//! The names that T5's layers have in GGUF files: those of llama.cpp.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Layers outside of the blocks, there and here.
const OUTER: [(&str, &str); 2] = [("token_embd", "shared"), ("enc.output_norm", "encoder.final_layer_norm")];

/// Layers of a block, there and here.
const BLOCK: [(&str, &str); 10] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
];

/// Whether these are tensors under those names.
pub(crate) fn is_original<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.starts_with("enc.blk."))
}

/// The tensors under the names that transformers has for them. What has no counterpart keeps its name.
pub(crate) fn to_transformers(original: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let renamed = |name: &str| {
        let layer = name.strip_suffix(".weight")?;
        if let Some((_, here)) = OUTER.iter().find(|(there, _)| *there == layer) {
            return Some(format!("{here}.weight"));
        }
        let (block, layer) = layer.strip_prefix("enc.blk.")?.split_once('.')?;
        let (_, here) = BLOCK.iter().find(|(there, _)| *there == layer)?;
        Some(format!("encoder.block.{block}.{here}.weight"))
    };
    original.into_iter().map(|(name, entry)| (renamed(&name).unwrap_or(name), entry)).collect()
}
