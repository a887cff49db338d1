//! The names that Mask2Former's tensors have in files of mmdetection, of which there are two generations, and those of
//! transformers.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Who wrote a file: says how its tensors are called, and how pictures are made ready for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// transformers.
    HuggingFace,
    /// mmdetection 2.x.
    Mmdet2,
    /// mmdetection 3.x.
    Mmdet3,
}

/// What only files of one kind have.
const TELLING: [(&str, Layout); 3] = [
    ("model.pixel_level_module.encoder.embeddings.patch_embeddings.projection.weight", Layout::HuggingFace),
    ("panoptic_head.pixel_decoder.encoder.layers.0.attentions.0.value_proj.weight", Layout::Mmdet2),
    ("panoptic_head.pixel_decoder.encoder.layers.0.self_attn.value_proj.weight", Layout::Mmdet3),
];

/// The layout of a file with tensors of these names, if it is one of Mask2Former.
pub(crate) fn layout<'a>(names: impl Iterator<Item = &'a str>) -> Option<Layout> {
    let mut names = names;
    names.find_map(|name| TELLING.iter().find(|(telling, _)| *telling == name)).map(|(_, layout)| *layout)
}

/// Beginnings of names, there and here; the first that fits is taken.
const BEGINNINGS: [(&str, &str); 15] = [
    ("backbone.patch_embed.projection.", "model.pixel_level_module.encoder.embeddings.patch_embeddings.projection."),
    ("backbone.patch_embed.norm.", "model.pixel_level_module.encoder.embeddings.norm."),
    ("backbone.stages.", "model.pixel_level_module.encoder.encoder.layers."),
    ("backbone.norm", "model.pixel_level_module.encoder.hidden_states_norms.stage"),
    ("panoptic_head.pixel_decoder.input_convs.", "model.pixel_level_module.decoder.input_projections."),
    ("panoptic_head.pixel_decoder.level_encoding.weight", "model.pixel_level_module.decoder.level_embed"),
    ("panoptic_head.pixel_decoder.lateral_convs.0", "model.pixel_level_module.decoder.adapter_1"),
    ("panoptic_head.pixel_decoder.output_convs.0", "model.pixel_level_module.decoder.layer_1"),
    ("panoptic_head.pixel_decoder.mask_feature.", "model.pixel_level_module.decoder.mask_projection."),
    ("panoptic_head.pixel_decoder.", "model.pixel_level_module.decoder."),
    ("panoptic_head.transformer_decoder.post_norm.", "model.transformer_module.decoder.layernorm."),
    ("panoptic_head.transformer_decoder.", "model.transformer_module.decoder."),
    ("panoptic_head.mask_embed.", "model.transformer_module.decoder.mask_predictor.mask_embedder."),
    ("panoptic_head.cls_embed.", "class_predictor."),
    ("panoptic_head.", "model.transformer_module."),
];

/// Parts of names that are the same wherever they stand, there and here.
const ANYWHERE: [(&str, &str); 9] = [
    (".conv.", ".0."),
    (".gn.", ".1."),
    ("query_feat.", "queries_features."),
    ("query_embed.", "queries_embedder."),
    (".attn.w_msa.proj.", ".attention.output.dense."),
    (".attn.w_msa.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".self_attn.attn.out_proj.", ".self_attn.out_proj."),
    (".cross_attn.attn.", ".cross_attn."),
    (".ffns.0.", ".ffn."),
];

/// The norms of a layer: of the backbone, of the pixel decoder, of the decoder.
const NORMS: [(&str, &[(&str, &str)]); 3] = [
    (".blocks.", &[(".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after.")]),
    (".pixel_decoder.", &[(".norms.0.", ".self_attn_layer_norm."), (".norms.1.", ".final_layer_norm.")]),
    (
        ".transformer_decoder.",
        &[
            (".norms.0.", ".cross_attn_layer_norm."),
            (".norms.1.", ".self_attn_layer_norm."),
            (".norms.2.", ".final_layer_norm."),
        ],
    ),
];

/// The tensors of a file of mmdetection, in either generation, under the names and in the form that transformers has.
pub(crate) fn to_transformers(original: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    original.into_iter().flat_map(|(name, entry)| one(&name, entry)).collect()
}

fn one(name: &str, entry: Entry) -> Vec<(String, Entry)> {
    let new = renamed(name);
    // Queries, keys and values in one, but for those of cross-attention, which transformers has in one too.
    let parts = [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")];
    let thirds = |entry: &Entry| {
        let third = entry.shape().first().map_or(0, |n| n / 3);
        [0, 1, 2].map(|i| entry.rows(i * third..(i + 1) * third))
    };
    let fits = entry.shape().first().is_some_and(|n| n.is_multiple_of(3));
    if let Some((before, kind)) = new.split_once(".attn.w_msa.qkv.").filter(|_| fits) {
        let name = |part: &str| format!("{before}.attention.self.{part}.{kind}");
        return parts.iter().zip(thirds(&entry)).map(|((part, _), e)| (name(part), e)).collect();
    }
    if let Some((before, kind)) = new.split_once(".self_attn.attn.in_proj_").filter(|_| fits) {
        let name = |part: &str| format!("{before}.self_attn.{part}.{kind}");
        return parts.iter().zip(thirds(&entry)).map(|((_, part), e)| (name(part), e)).collect();
    }
    if new.contains(".downsample.")
        && let Some(permuted) = merged(&entry)
    {
        return vec![(new, permuted)];
    }
    vec![(new, entry)]
}

fn renamed(name: &str) -> String {
    let Some((there, here)) = BEGINNINGS.iter().find(|(there, _)| name.starts_with(there)) else {
        return name.to_string();
    };
    let mut rest = name[there.len()..].to_string();
    match *there {
        // Stages are counted from 1 here.
        "backbone.norm" => match rest.split_once('.') {
            Some((stage, what)) if stage.parse::<usize>().is_ok_and(|s| s < 4) => {
                return format!("{here}{}.{what}", stage.parse::<usize>().expect("just parsed") + 1);
            }
            _ => return name.to_string(),
        },
        // The layers between are activations.
        "panoptic_head.mask_embed." => {
            for (i, layer) in ["0.", "2.", "4."].iter().enumerate() {
                if let Some(what) = rest.strip_prefix(layer) {
                    return format!("{here}{i}.0.{what}");
                }
            }
            return name.to_string();
        }
        _ => {}
    }
    let is_of = |part: &str| name.contains(part);
    // The generations call attention otherwise: there is one in a layer of the pixel decoder, two in one of the decoder.
    let attentions: &[(&str, &str)] = if is_of(".pixel_decoder.") {
        &[(".attentions.0.", ".self_attn.")]
    } else {
        &[(".attentions.0.", ".cross_attn."), (".attentions.1.", ".self_attn.")]
    };
    let norms = NORMS.iter().filter(|(of, _)| is_of(of)).flat_map(|(_, norms)| norms.iter());
    for (there, here) in attentions.iter().chain(norms).chain(&ANYWHERE) {
        rest = rest.replacen(there, here, 1);
    }
    let (first, second) = if is_of("backbone.") { ("intermediate.dense", "output.dense") } else { ("fc1", "fc2") };
    rest = rest.replacen("ffn.layers.0.0", first, 1).replacen("ffn.layers.1", second, 1);
    format!("{here}{rest}")
}

/// What merges neighbours, `[.., 4c]` by (channel, row, column) there and by (column, row, channel) here.
fn merged(entry: &Entry) -> Option<Entry> {
    let width = *entry.shape().last()?;
    let channels = width / 4;
    if !width.is_multiple_of(4) || channels == 0 {
        return None;
    }
    let values = entry.to_f32()?;
    let from = |at: usize| {
        let (column, row, channel) = (at / channels / 2, at / channels % 2, at % channels);
        channel * 4 + row * 2 + column
    };
    let permuted: Vec<f32> = values.chunks_exact(width).flat_map(|row| (0..width).map(|at| row[from(at)])).collect();
    Some(Entry::of_f32(&permuted, entry.shape()))
}
