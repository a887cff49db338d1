use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// More layers than any model has: a config that asks for more is damaged.
const MOST_LAYERS: usize = 1000;

/// Fails unless the sizes, given by key, are at least 1, and the numbers of layers also believable.
///
/// # Errors
/// Names the file, the key, what was found and what is expected.
pub(super) fn check_sizes(path: &Path, within: &str, sizes: &[(&str, usize)], layers: &[(&str, usize)]) -> Result<()> {
    for (key, value) in sizes.iter().chain(layers) {
        ensure!(*value > 0, "{}: {within}{key} is 0, expected at least 1", path.display());
    }
    for (key, value) in layers {
        ensure!(*value <= MOST_LAYERS, "{}: {within}{key} is {value}, expected at most {MOST_LAYERS}", path.display());
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
