//! The names that the picture encoder of mPLUG-Owl2 has in its authors' code, in which queries, keys and values are one layer, head
//! by head, brought to those of CLIP's blocks in transformers.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Layers of a block, there and here.
const BLOCK: [(&str, &str); 5] = [
    ("input_layernorm", "layer_norm1"),
    ("post_attention_layernorm", "layer_norm2"),
    ("self_attn.dense", "self_attn.out_proj"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
];

/// The parts of `query_key_value`, in the order of the rows of each head.
const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The tensors with those of blocks `<encoder>.layers.N` under the names of CLIP; blocks have `heads` heads. Others keep their
/// names.
pub(crate) fn to_clip(tensors: BTreeMap<String, Entry>, encoder: &str, heads: usize) -> BTreeMap<String, Entry> {
    let convert = |(name, entry): (String, Entry)| {
        let block = name.strip_prefix(encoder).and_then(|rest| rest.strip_prefix(".layers."));
        block.and_then(|rest| convert(encoder, rest, &entry, heads)).unwrap_or_else(|| vec![(name, entry)])
    };
    tensors.into_iter().flat_map(convert).collect()
}

fn convert(encoder: &str, rest: &str, entry: &Entry, heads: usize) -> Option<Vec<(String, Entry)>> {
    let (index, layer) = rest.split_once('.')?;
    let (layer, kind) = layer.rsplit_once('.')?;
    let named = |layer: &str| format!("{encoder}.layers.{index}.{layer}.{kind}");
    if layer == "self_attn.query_key_value" {
        let rows = *entry.shape().first()?;
        let per_head = rows / heads / PARTS.len();
        if per_head * heads * PARTS.len() != rows {
            return None;
        }
        let part =
            |(i, part): (usize, &str)| (named(&format!("self_attn.{part}")), entry.strided(i, PARTS.len(), per_head));
        return Some(PARTS.into_iter().enumerate().map(part).collect());
    }
    let (_, here) = BLOCK.iter().find(|(there, _)| *there == layer)?;
    Some(vec![(named(here), entry.clone())])
}
