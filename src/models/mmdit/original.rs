//! What the layers are called outside diffusers: the names of the original implementation (Stability's `sd3_impls.py`), in
//! which queries, keys and values are one layer, as checkpoints in one file, ComfyUI and sd-scripts have them.

use crate::models::lora::Module;

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

/// What `module` of a transformer is in the original; none for a name that has no counterpart.
pub(crate) fn of(module: &Module) -> Option<Original> {
    let whole = |name: String| Some(Original { name, part: (0, 1), swapped: false });
    let two = |name: String| Some(Original { name, part: (0, 1), swapped: module.outputs == 2 * module.inputs });
    let linear = |layer: &str| match layer {
        "linear_1" => Some("mlp.0"),
        "linear_2" => Some("mlp.2"),
        _ => None,
    };
    let name = module.name.as_str();
    match name {
        "context_embedder" => return whole(name.into()),
        "proj_out" => return whole("final_layer.linear".into()),
        "norm_out.linear" => return two("final_layer.adaLN_modulation.1".into()),
        _ => {}
    }
    for (here, there) in [("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")] {
        if let Some(layer) = name.strip_prefix(&format!("time_text_embed.{here}.")) {
            return whole(format!("{there}.{}", linear(layer)?));
        }
    }
    let (block, layer) = name.strip_prefix("transformer_blocks.")?.split_once('.')?;
    let of = |stream: &str, layer: &str| format!("joint_blocks.{block}.{stream}_block.{layer}");
    let qkv = |stream: &str, attention: &str, part| {
        Some(Original { name: of(stream, &format!("{attention}.qkv")), part: (part, 3), swapped: false })
    };
    match layer {
        "attn.to_q" => qkv("x", "attn", 0),
        "attn.to_k" => qkv("x", "attn", 1),
        "attn.to_v" => qkv("x", "attn", 2),
        "attn2.to_q" => qkv("x", "attn2", 0),
        "attn2.to_k" => qkv("x", "attn2", 1),
        "attn2.to_v" => qkv("x", "attn2", 2),
        "attn.add_q_proj" => qkv("context", "attn", 0),
        "attn.add_k_proj" => qkv("context", "attn", 1),
        "attn.add_v_proj" => qkv("context", "attn", 2),
        "attn.to_out.0" => whole(of("x", "attn.proj")),
        "attn2.to_out.0" => whole(of("x", "attn2.proj")),
        "attn.to_add_out" => whole(of("context", "attn.proj")),
        "ff.net.0.proj" => whole(of("x", "mlp.fc1")),
        "ff.net.2" => whole(of("x", "mlp.fc2")),
        "ff_context.net.0.proj" => whole(of("context", "mlp.fc1")),
        "ff_context.net.2" => whole(of("context", "mlp.fc2")),
        "norm1.linear" => whole(of("x", "adaLN_modulation.1")),
        "norm1_context.linear" => two(of("context", "adaLN_modulation.1")),
        _ => None,
    }
}
