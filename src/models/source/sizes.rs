//! The settings of a part that has no `config.json`, read off the shapes of its tensors; what shapes do not tell is the same in
//! all models of the SD3 family.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Kind;
use crate::io::{Entry, short};

/// Channels per head of the transformer and of the CLIPs.
const HEAD: usize = 64;

/// Tensors by the names of diffusers and transformers.
type Tensors = BTreeMap<String, Entry>;

/// What the `config.json` of the part would say.
///
/// # Errors
/// Names the tensor that is missing or has too few axes.
pub(super) fn settings(kind: Kind, tensors: &Tensors) -> Result<Value> {
    match kind {
        Kind::Transformer => transformer(tensors),
        Kind::Vae => vae(tensors),
        Kind::ClipL => clip(tensors, "quick_gelu"),
        Kind::ClipG => clip(tensors, "gelu"),
        Kind::T5 => t5(tensors),
    }
}

/// Size of axis `axis` of tensor `name`.
fn size(tensors: &Tensors, name: &str, axis: usize) -> Result<usize> {
    let entry = tensors.get(name).with_context(|| format!("no tensor '{name}'"))?;
    let size = entry.shape().get(axis);
    size.copied().with_context(|| format!("tensor '{}' has shape {:?}", short(name), entry.shape()))
}

/// The numbers that follow `before` in names.
fn numbers(tensors: &Tensors, before: &str) -> BTreeSet<usize> {
    tensors.keys().filter_map(|name| name.strip_prefix(before)?.split_once('.')?.0.parse().ok()).collect()
}

/// One more than the largest of the numbers that follow `before` in names.
fn count(tensors: &Tensors, before: &str) -> usize {
    numbers(tensors, before).last().map_or(0, |last| last.saturating_add(1))
}

fn transformer(tensors: &Tensors) -> Result<Value> {
    let of = |name: &str, axis| size(tensors, name, axis);
    let width = of("context_embedder.weight", 0)?;
    let layers = count(tensors, "transformer_blocks.");
    let has = |i: usize, layer: &str| tensors.contains_key(&format!("transformer_blocks.{i}.{layer}.weight"));
    let head = if has(0, "attn.norm_q") { of("transformer_blocks.0.attn.norm_q.weight", 0)? } else { HEAD };
    ensure!(head > 0 && width.is_multiple_of(head), "a width of {width} is no whole number of heads of {head}");
    // No more layers than tensors, whatever numbers their names hold.
    let dual: Vec<usize> =
        numbers(tensors, "transformer_blocks.").into_iter().filter(|i| has(*i, "attn2.to_q")).collect();
    let (channels, patch) = (of("pos_embed.proj.weight", 1)?, of("pos_embed.proj.weight", 2)?);
    let table = match tensors.get("pos_embed.pos_embed") {
        Some(_) => of("pos_embed.pos_embed", 1)?.isqrt(),
        None if dual.is_empty() => 192,
        None => 384,
    };
    Ok(json!({
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": of("proj_out.weight", 0)? / patch.saturating_mul(patch).max(1),
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width / head,
        "joint_attention_dim": of("context_embedder.weight", 1)?,
        "caption_projection_dim": width,
        "pooled_projection_dim": of("time_text_embed.text_embedder.linear_1.weight", 1)?,
        "pos_embed_max_size": table,
        "dual_attention_layers": dual,
        "qk_norm": has(0, "attn.norm_q").then_some("rms_norm"),
    }))
}

fn vae(tensors: &Tensors) -> Result<Value> {
    let of = |name: &str, axis| size(tensors, name, axis);
    let levels = numbers(tensors, "encoder.down_blocks.");
    let channels = levels
        .iter()
        .map(|i| of(&format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "in_channels": of("encoder.conv_in.weight", 1)?,
        "out_channels": of("decoder.conv_out.weight", 0)?,
        "block_out_channels": channels,
        "layers_per_block": count(tensors, "encoder.down_blocks.0.resnets."),
        "latent_channels": of("decoder.conv_in.weight", 1)?,
        "norm_num_groups": 32,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": tensors.contains_key("quant_conv.weight"),
        "use_post_quant_conv": tensors.contains_key("post_quant_conv.weight"),
    }))
}

/// Where the tower of a CLIP begins: some versions of transformers leave out the first part of the names.
fn tower(tensors: &Tensors) -> &'static str {
    if tensors.contains_key("embeddings.token_embedding.weight") { "" } else { "text_model." }
}

/// Width of a CLIP's text tower.
pub(super) fn clip_width(tensors: &Tensors) -> Option<usize> {
    size(tensors, &format!("{}embeddings.token_embedding.weight", tower(tensors)), 1).ok()
}

fn clip(tensors: &Tensors, act: &str) -> Result<Value> {
    let tower = tower(tensors);
    let of = |name: &str, axis| size(tensors, &format!("{tower}{name}"), axis);
    let width = of("embeddings.token_embedding.weight", 1)?;
    Ok(json!({
        "vocab_size": of("embeddings.token_embedding.weight", 0)?,
        "hidden_size": width,
        "intermediate_size": of("encoder.layers.0.mlp.fc1.weight", 0)?,
        "projection_dim": size(tensors, "text_projection.weight", 0)?,
        "num_hidden_layers": count(tensors, &format!("{tower}encoder.layers.")),
        "num_attention_heads": (width / HEAD).max(1),
        "max_position_embeddings": of("embeddings.position_embedding.weight", 0)?,
        "hidden_act": act,
        // The end token is the one of the largest id.
        "eos_token_id": 2,
    }))
}

fn t5(tensors: &Tensors) -> Result<Value> {
    let of = |name: &str, axis| size(tensors, name, axis);
    let table = if tensors.contains_key("shared.weight") { "shared.weight" } else { "encoder.embed_tokens.weight" };
    let first = "encoder.block.0.layer.0.SelfAttention";
    let (buckets, heads) = (
        of(&format!("{first}.relative_attention_bias.weight"), 0)?,
        of(&format!("{first}.relative_attention_bias.weight"), 1)?,
    );
    Ok(json!({
        "vocab_size": of(table, 0)?,
        "d_model": of(table, 1)?,
        "d_kv": of(&format!("{first}.q.weight"), 0)? / heads.max(1),
        "d_ff": of("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0)?,
        "num_layers": count(tensors, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }))
}
