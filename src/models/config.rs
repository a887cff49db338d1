use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// More layers than any model has: a config that asks for more is damaged.
const MOST_LAYERS: usize = 1000;

/// A larger size than any model has; products of three fit in 64 bits.
pub(super) const MOST_SIZE: usize = 1 << 20;

/// Fails unless the sizes, given by key, are at least 1 and believable, and the numbers of layers too.
///
/// # Errors
/// Names the file, the key, what was found and what is expected.
pub(super) fn check_sizes(path: &Path, within: &str, sizes: &[(&str, usize)], layers: &[(&str, usize)]) -> Result<()> {
    for (key, value) in sizes.iter().chain(layers) {
        ensure!(*value > 0, "{}: {within}{key} is 0, expected at least 1", path.display());
    }
    let most = sizes.iter().map(|of| (of, MOST_SIZE)).chain(layers.iter().map(|of| (of, MOST_LAYERS)));
    for ((key, value), most) in most {
        ensure!(*value <= most, "{}: {within}{key} is {value}, expected at most {most}", path.display());
    }
    Ok(())
}

/// `T` from `value`, which was read from `path` and lies under the keys `within` there (`"text_config."`, or
/// nothing). A key that is null counts as missing, as it does for transformers.
///
/// # Errors
/// Names the file and the key that is not as `T` wants it.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, within: &str, value: Value) -> Result<T> {
    let Value::Object(mut keys) = value else {
        return Err(anyhow!("{}: expected an object with keys {within}*", path.display()));
    };
    keys.retain(|_, v| !v.is_null());
    let error = match serde_json::from_value(Value::Object(keys.clone())) {
        Ok(parsed) => return Ok(parsed),
        Err(e) => e,
    };
    // serde does not say which key it was at: find the one that is wrong on its own.
    let alone = |(k, v): (String, Value)| {
        let e = serde_json::from_value::<T>(Value::Object(Map::from_iter([(k.clone(), v)]))).err()?;
        (!e.to_string().starts_with("missing field")).then_some((k, e))
    };
    Err(match keys.into_iter().find_map(alone) {
        Some((key, e)) => anyhow!("{}: key '{within}{key}': {e}", path.display()),
        None => anyhow!("{}: {error}", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::device::Device;
    use crate::models::autoencoder::Autoencoder;
    use crate::models::clip::{Clip, ClipText};
    use crate::models::load_network;
    use crate::models::t5::T5;

    #[test]
    fn a_size_that_no_model_has_is_refused_by_its_key_before_anything_is_multiplied() {
        let dir = tempfile::tempdir().unwrap();
        let load = |part: &str, key: &str, value: &str| -> Result<()> {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(part).join("config.json");
            let mut config: Value = crate::io::read_json(&from).unwrap();
            *config.pointer_mut(key).unwrap() = serde_json::from_str(value).unwrap();
            let to: PathBuf = dir.path().join("config.json");
            std::fs::write(to, config.to_string()).unwrap();
            if part == "clip/quick" {
                // Its layout is told by its tensors.
                let weights = from.with_file_name("model.safetensors");
                std::fs::copy(weights, dir.path().join("model.safetensors")).unwrap();
            }
            let (folder, device) = (dir.path(), &Device::Cpu);
            match part {
                "mmdit/sd35" => load_network(folder, device, None).map(drop),
                "autoencoder/vae16" => Autoencoder::load(folder, device, None).map(drop),
                "clip_text/l" => ClipText::load(folder, device).map(drop),
                "clip/quick" => Clip::load(folder, device).map(drop),
                _ => T5::load(folder, device).map(drop),
            }
        };
        const HUGE: &str = "9223372036854775808";
        for (part, key, value, named) in [
            ("mmdit/sd35", "/num_attention_heads", HUGE, "num_attention_heads"),
            ("mmdit/sd35", "/attention_head_dim", "1048576", "num_attention_heads·attention_head_dim"),
            ("mmdit/sd35", "/out_channels", HUGE, "out_channels"),
            ("mmdit/sd35", "/pos_embed_max_size", HUGE, "pos_embed_max_size"),
            ("autoencoder/vae16", "/block_out_channels/0", HUGE, "block_out_channels"),
            ("clip_text/l", "/hidden_size", HUGE, "hidden_size"),
            ("clip/quick", "/vision_config/image_size", HUGE, "vision_config.image_size"),
            ("t5/gated", "/d_kv", HUGE, "d_kv"),
        ] {
            let error = load(part, key, value).err().unwrap().to_string();
            assert!(error.contains(&format!("config.json: {named} is ")) && error.contains("at most"), "{error}");
        }
    }
}
