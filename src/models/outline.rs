//! Models of which there are only shapes, for plans of runs whose weights are not at hand. They are named in the place of a
//! folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::io::built_in;

/// What the names of outlines end in.
const ENDING: &str = ":shapes";
/// Stands for Stable Diffusion 3.5 Medium.
pub const SD35_MEDIUM: &str = "sd3.5-medium:shapes";
/// Stands for the CLIP ViT-H/14 that PickScore_v1 is.
pub const CLIP_H: &str = "clip-vit-h-14:shapes";
/// Stands for a file of prompts.
pub const PROMPTS: &str = "prompts:shapes";
/// As many prompts as that has.
pub const PROMPT_COUNT: usize = 2048;

/// Tensors that a model need not have, and those have.
pub(super) const WITH: &[&str] = &["pos_embed"];

/// Whether `path` names an outline.
pub fn is_outline(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.ends_with(ENDING))
}

/// An outline in the place of `path`, and a line about it, if nothing is there.
pub fn stand_in(path: &mut PathBuf, what: &str, outline: &'static str) -> Option<String> {
    if path.exists() || is_outline(path) || built_in::is_named(path) {
        return None;
    }
    let line = format!("{what}: there is no {}; planned with the shapes of {outline}", path.display());
    *path = outline.into();
    Some(line)
}

/// The settings of every part of Stable Diffusion 3.5 Medium (stabilityai/stable-diffusion-3.5-medium), as its folder would
/// have them.
pub(super) fn sd35_medium() -> [(&'static str, Value); 9] {
    let clip = |width: usize, layers: usize, heads: usize, act: &str| {
        json!({
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "projection_dim": width, "hidden_act": act, "eos_token_id": 2,
        })
    };
    let transformer = json!({
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
        "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": (0..13).collect::<Vec<_>>(),
        "qk_norm": "rms_norm",
    });
    let vae = json!({
        "in_channels": 3, "out_channels": 3, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "latent_channels": 16, "norm_num_groups": 32, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": false, "use_post_quant_conv": false,
    });
    let t5 = json!({
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    });
    let scheduler =
        json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000});
    let tokens = |most: usize| json!({"model_max_length": most});
    [
        ("transformer", transformer),
        ("vae", vae),
        ("text_encoder", clip(768, 12, 12, "quick_gelu")),
        ("text_encoder_2", clip(1280, 32, 20, "gelu")),
        ("text_encoder_3", t5),
        ("scheduler", scheduler),
        ("tokenizer", tokens(77)),
        ("tokenizer_2", tokens(77)),
        ("tokenizer_3", tokens(512)),
    ]
}

/// The settings of CLIP ViT-H/14 (laion/CLIP-ViT-H-14-laion2B-s32B-b79K).
pub(super) fn clip_h() -> Value {
    json!({
        "projection_dim": 1024,
        "text_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "projection_dim": 1024, "hidden_act": "gelu",
        },
        "vision_config": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
        },
    })
}
