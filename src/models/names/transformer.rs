//! What the layers are called outside diffusers: the names of the original implementation (Stability's `sd3_impls.py`), in
//! which queries, keys and values are one layer, as checkpoints in one file, GGUF, ComfyUI and sd-scripts have them.

use std::collections::BTreeMap;

use crate::io::Entry;
use crate::models::lora::Module;

/// Layers outside of the blocks, here and there.
const OUTER: [(&str, &str); 8] = [
    ("context_embedder", "context_embedder"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// Layers of a block, here and there, and which part of the original's outputs, of how many equal ones.
const BLOCK: [(&str, &str, (usize, usize)); 24] = [
    ("attn.to_q", "x_block.attn.qkv", (0, 3)),
    ("attn.to_k", "x_block.attn.qkv", (1, 3)),
    ("attn.to_v", "x_block.attn.qkv", (2, 3)),
    ("attn.norm_q", "x_block.attn.ln_q", (0, 1)),
    ("attn.norm_k", "x_block.attn.ln_k", (0, 1)),
    ("attn.to_out.0", "x_block.attn.proj", (0, 1)),
    ("attn2.to_q", "x_block.attn2.qkv", (0, 3)),
    ("attn2.to_k", "x_block.attn2.qkv", (1, 3)),
    ("attn2.to_v", "x_block.attn2.qkv", (2, 3)),
    ("attn2.norm_q", "x_block.attn2.ln_q", (0, 1)),
    ("attn2.norm_k", "x_block.attn2.ln_k", (0, 1)),
    ("attn2.to_out.0", "x_block.attn2.proj", (0, 1)),
    ("attn.add_q_proj", "context_block.attn.qkv", (0, 3)),
    ("attn.add_k_proj", "context_block.attn.qkv", (1, 3)),
    ("attn.add_v_proj", "context_block.attn.qkv", (2, 3)),
    ("attn.norm_added_q", "context_block.attn.ln_q", (0, 1)),
    ("attn.norm_added_k", "context_block.attn.ln_k", (0, 1)),
    ("attn.to_add_out", "context_block.attn.proj", (0, 1)),
    ("norm1.linear", "x_block.adaLN_modulation.1", (0, 1)),
    ("norm1_context.linear", "context_block.adaLN_modulation.1", (0, 1)),
    ("ff.net.0.proj", "x_block.mlp.fc1", (0, 1)),
    ("ff.net.2", "x_block.mlp.fc2", (0, 1)),
    ("ff_context.net.0.proj", "context_block.mlp.fc1", (0, 1)),
    ("ff_context.net.2", "context_block.mlp.fc2", (0, 1)),
];

/// A layer of diffusers as a part of one of the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Original {
    /// The original layer.
    pub name: String,
    /// Which part of its outputs, of how many equal ones.
    pub part: (usize, usize),
    /// Whether the two halves of the outputs are the other way round: shift and scale there, scale and shift here.
    pub swapped: bool,
}

/// Whether layer `name` of diffusers, if it makes `outputs` of `inputs`, has its halves the other way round.
fn is_swapped(name: &str, inputs: usize, outputs: usize) -> bool {
    (name == "norm_out.linear" || name.ends_with(".norm1_context.linear")) && outputs == 2 * inputs
}

/// What `module` of a transformer is in the original; none for a name that has no counterpart.
pub(crate) fn of(module: &Module) -> Option<Original> {
    let swapped = is_swapped(&module.name, module.inputs, module.outputs);
    if let Some((_, there)) = OUTER.iter().find(|(here, _)| *here == module.name) {
        return Some(Original { name: there.to_string(), part: (0, 1), swapped });
    }
    let (block, layer) = module.name.strip_prefix("transformer_blocks.")?.split_once('.')?;
    let (_, there, part) = BLOCK.iter().find(|(here, ..)| *here == layer)?;
    Some(Original { name: format!("joint_blocks.{block}.{there}"), part: *part, swapped })
}

/// Whether these are tensors under the original names.
pub(crate) fn is_original<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.starts_with("joint_blocks."))
}

/// The tensors of a transformer under the names that diffusers has for them
/// (`convert_sd3_transformer_checkpoint_to_diffusers`). What has no counterpart keeps its name.
pub(crate) fn to_diffusers(mut original: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let numbers: std::collections::BTreeSet<String> = original
        .keys()
        .filter_map(|name| Some(name.strip_prefix("joint_blocks.")?.split_once('.')?.0.to_string()))
        .collect();
    let outer = OUTER.iter().map(|(here, there)| (here.to_string(), there.to_string(), (0, 1)));
    let blocks = numbers.iter().flat_map(|i| {
        BLOCK.iter().map(move |(here, there, part)| {
            (format!("transformer_blocks.{i}.{here}"), format!("joint_blocks.{i}.{there}"), *part)
        })
    });
    let mut found: BTreeMap<String, Entry> = BTreeMap::new();
    let mut done = vec!["pos_embed".to_string()];
    found.extend(original.get("pos_embed").map(|table| ("pos_embed.pos_embed".to_string(), table.clone())));
    for (here, there, (part, of)) in outer.chain(blocks) {
        let swapped = original
            .get(&format!("{there}.weight"))
            .is_some_and(|weight| matches!(weight.shape(), [outputs, inputs] if is_swapped(&here, *inputs, *outputs)));
        for kind in ["weight", "bias"] {
            let name = format!("{there}.{kind}");
            let Some(entry) = original.get(&name) else { continue };
            let rows = entry.shape().first().copied().unwrap_or(0);
            let here = format!("{here}.{kind}");
            if of > 1 && (rows == 0 || !rows.is_multiple_of(of)) {
                continue;
            }
            let entry = match (of, swapped) {
                (1, true) => entry.swapped(),
                (1, false) => entry.clone(),
                _ => entry.rows(part * (rows / of)..(part + 1) * (rows / of)),
            };
            found.insert(here, entry);
            done.push(name);
        }
    }
    done.iter().for_each(|name| drop(original.remove(name)));
    found.extend(original);
    found
}
