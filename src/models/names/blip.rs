//! The names that the image encoder of BLIP has in Salesforce's code (timm's vision transformer), in which queries, keys and values
//! are one layer, brought to those of CLIP's blocks in transformers.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Layers of a block, there and here.
const BLOCK: [(&str, &str); 5] = [
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("attn.proj", "self_attn.out_proj"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
];

/// The parts of `qkv`, in the order of its rows.
const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The tensors with those of blocks `<encoder>.blocks.N` as `<encoder>.layers.N`. Others keep their names.
pub(crate) fn to_clip(tensors: BTreeMap<String, Entry>, encoder: &str) -> BTreeMap<String, Entry> {
    let convert = |(name, entry): (String, Entry)| {
        let block = name.strip_prefix(encoder).and_then(|rest| rest.strip_prefix(".blocks."));
        block.and_then(|rest| convert(encoder, rest, &entry)).unwrap_or_else(|| vec![(name, entry)])
    };
    tensors.into_iter().flat_map(convert).collect()
}

fn convert(encoder: &str, rest: &str, entry: &Entry) -> Option<Vec<(String, Entry)>> {
    let (index, layer) = rest.split_once('.')?;
    let (layer, kind) = layer.rsplit_once('.')?;
    let named = |layer: &str| format!("{encoder}.layers.{index}.{layer}.{kind}");
    if layer == "attn.qkv" {
        let rows = *entry.shape().first().filter(|rows| rows.is_multiple_of(PARTS.len()))? / PARTS.len();
        let part =
            |(i, part): (usize, &str)| (named(&format!("self_attn.{part}")), entry.rows(i * rows..(i + 1) * rows));
        return Some(PARTS.into_iter().enumerate().map(part).collect());
    }
    let (_, here) = BLOCK.iter().find(|(there, _)| *there == layer)?;
    Some(vec![(named(here), entry.clone())])
}
