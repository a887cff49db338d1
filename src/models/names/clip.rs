//! The names that CLIP's layers have outside transformers: those of OpenAI's code and of open_clip, in which queries, keys
//! and values are one layer and projections are stored input first.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Layers and parameters outside of the blocks, there and here.
const OUTER: [(&str, &str); 8] = [
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    // The misspelling is that of transformers.
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final", "text_model.final_layer_norm"),
];

/// What the names of blocks begin with, there and here.
const TOWERS: [(&str, &str); 2] = [
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
];

/// Layers of a block, there and here.
const BLOCK: [(&str, &str); 5] = [
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
];

/// The parts of `in_proj`, in the order of its rows.
const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Projections, there and here; transposed.
const PROJECTIONS: [(&str, &str); 2] =
    [("visual.proj", "visual_projection.weight"), ("text_projection", "text_projection.weight")];

/// Whether these are tensors under those names.
pub(crate) fn is_original<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name == "visual.conv1.weight")
}

/// The tensors under the names that transformers has for them. What has no counterpart, or not the shape of one, keeps its
/// name.
pub(crate) fn to_transformers(original: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    original
        .into_iter()
        .flat_map(|(name, entry)| convert(&name, &entry).unwrap_or_else(|| vec![(name, entry)]))
        .collect()
}

fn convert(name: &str, entry: &Entry) -> Option<Vec<(String, Entry)>> {
    if let Some((_, here)) = PROJECTIONS.iter().find(|(there, _)| *there == name) {
        return (entry.shape().len() == 2).then(|| vec![(here.to_string(), entry.transposed())]);
    }
    for (there, here) in OUTER {
        match name.strip_prefix(there) {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => {
                return Some(vec![(format!("{here}{rest}"), entry.clone())]);
            }
            _ => {}
        }
    }
    let (tower, rest) = TOWERS.iter().find_map(|(there, here)| Some((here, name.strip_prefix(there)?)))?;
    let (index, layer) = rest.split_once('.')?;
    if let Some(kind) = layer.strip_prefix("attn.in_proj_") {
        let rows = *entry.shape().first().filter(|rows| rows.is_multiple_of(PARTS.len()))? / PARTS.len();
        let part = |(i, part): (usize, &str)| {
            (format!("{tower}{index}.self_attn.{part}.{kind}"), entry.rows(i * rows..(i + 1) * rows))
        };
        return Some(PARTS.into_iter().enumerate().map(part).collect());
    }
    let (layer, kind) = layer.rsplit_once('.')?;
    let (_, here) = BLOCK.iter().find(|(there, _)| *there == layer)?;
    Some(vec![(format!("{tower}{index}.{here}.{kind}"), entry.clone())])
}
