//! The names that the autoencoder's layers have in checkpoints of one file: those of CompVis' latent diffusion.

use std::collections::BTreeMap;

use crate::io::Entry;

/// Parts of a name below `encoder.` or `decoder.`, there and here.
const NAMES: [(&str, &str); 12] = [
    ("norm_out.", "conv_norm_out."),
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".block.", ".resnets."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
];

/// Whether these are tensors under those names.
pub(crate) fn is_original<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| ["encoder.down.", "decoder.up."].iter().any(|start| name.starts_with(start)))
}

/// The tensors under the names that diffusers has for them (`convert_ldm_vae_checkpoint`); the 1x1 convolutions of the
/// attention are linear layers there.
pub(crate) fn to_diffusers(original: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let level = |name: &str| name.strip_prefix("decoder.up.")?.split_once('.')?.0.parse::<usize>().ok();
    let coarsest = original.keys().filter_map(|name| level(name)).max().unwrap_or(0);
    let renamed = |name: String, entry: Entry| {
        // The decoder's levels are counted from the finest there.
        let mut new = match level(&name) {
            Some(i) => name.replacen(&format!("decoder.up.{i}."), &format!("decoder.up_blocks.{}.", coarsest - i), 1),
            None => name.replacen("encoder.down.", "encoder.down_blocks.", 1),
        };
        for (there, here) in NAMES {
            new = new.replacen(there, here, 1);
        }
        let entry = match *entry.shape() {
            [out, inputs, 1, 1] if new.contains(".attentions.") => entry.reshaped(&[out, inputs]),
            _ => entry,
        };
        (new, entry)
    };
    original.into_iter().map(|(name, entry)| renamed(name, entry)).collect()
}
