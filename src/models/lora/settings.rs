//! What PEFT writes down about an adapter besides its numbers.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, anyhow, ensure};
use regex::Regex;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::io::{TensorFile, read_json, short};

/// Where the header of a LoRA of diffusers has PEFT's settings.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// What PEFT's `save_pretrained` writes instead of such a file.
pub(super) const PEFT_FILE: &str = "adapter_model.safetensors";
/// The name of PEFT's settings beside its file.
const PEFT_SETTINGS: &str = "adapter_config.json";

/// What PEFT's settings say about rank and scaling.
#[derive(Default)]
pub(super) struct Settings {
    rank: Option<f32>,
    alpha: Option<f32>,
    rank_pattern: Vec<(Regex, f32)>,
    alpha_pattern: Vec<(Regex, f32)>,
    /// Whether scales are by the root of the rank.
    pub rslora: bool,
}

/// One of PEFT's settings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Setting {
    /// The first pattern that matches counts: their order is that of the file.
    Pattern(Ordered),
    Other(Value),
}

/// The entries of a JSON object as they come.
struct Ordered(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Ways of PEFT to begin a LoRA that take the first product out of the base's weights: on the base as it was, the factors are
/// something else.
const CHANGES_BASE: [&str; 6] = ["pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal"];

impl Settings {
    /// What the header of `file`, or the settings beside it, say of `component`.
    ///
    /// # Errors
    /// Names the file and the setting that asks for what these factors alone are not.
    pub fn read(file: &TensorFile, component: &str) -> Result<Self> {
        let mut shown = file.path().display().to_string();
        let beside = file.path().with_file_name(PEFT_SETTINGS);
        let all: BTreeMap<String, Setting> = match file.metadata().get(METADATA) {
            Some(text) => serde_json::from_str(text).with_context(|| format!("{shown}: header {METADATA}"))?,
            None if file.path().ends_with(PEFT_FILE) => {
                ensure!(beside.exists(), "{shown}: there is no {PEFT_SETTINGS} beside it, which says how strong it is");
                shown = beside.display().to_string();
                read_json(&beside)?
            }
            None => return Ok(Self::default()),
        };
        let setting = |key: &str| all.get(&format!("{component}.{key}")).or_else(|| all.get(key));
        let get = |key: &str| match setting(key) {
            Some(Setting::Other(value)) => Some(value),
            _ => None,
        };
        let flag = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
        ensure!(!flag("use_dora"), "{shown}: use_dora: is a DoRA, which is not supported");
        if let Some(init) = get("init_lora_weights").and_then(Value::as_str) {
            let changes = CHANGES_BASE.iter().any(|way| init.starts_with(way));
            ensure!(
                !changes,
                "{shown}: init_lora_weights is '{init}': its factors belong to a base with other weights"
            );
        }
        let bias = get("bias").and_then(Value::as_str).unwrap_or("none");
        ensure!(bias == "none", "{shown}: bias is '{bias}': trained biases are not supported");
        let saved = get("modules_to_save").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        ensure!(!saved, "{shown}: modules_to_save: whole trained layers are not supported");
        let number = |key: &str| get(key).and_then(Value::as_f64).map(|v| v as f32);
        let pattern = |key: &str| -> Result<Vec<(Regex, f32)>> {
            let entries = match setting(key) {
                Some(Setting::Pattern(Ordered(entries))) => entries.as_slice(),
                _ => &[],
            };
            let read = |(target, value): &(String, Value)| {
                // As PEFT's `get_pattern_key`: the end of a name after a dot, by a regular expression that may anchor itself
                // at the name's start.
                let whole = Regex::new(&format!(r"^(?:.*\.)?(?:{target})$"));
                let whole = whole.map_err(|_| anyhow!("{shown}: {key} '{}' is not understood", short(target)))?;
                let value = value.as_f64().with_context(|| format!("{shown}: {key} '{target}' is not a number"))?;
                Ok((whole, value as f32))
            };
            entries.iter().map(read).collect()
        };
        Ok(Self {
            rank: number("r"),
            alpha: number("lora_alpha"),
            rank_pattern: pattern("rank_pattern")?,
            alpha_pattern: pattern("alpha_pattern")?,
            rslora: flag("use_rslora"),
        })
    }

    /// `r` of module `name`.
    pub fn rank(&self, name: &str) -> Option<f32> {
        find_pattern(&self.rank_pattern, name).or(self.rank)
    }

    /// `alpha` of module `name`.
    pub fn alpha(&self, name: &str) -> Option<f32> {
        find_pattern(&self.alpha_pattern, name).or(self.alpha)
    }
}

fn find_pattern(patterns: &[(Regex, f32)], name: &str) -> Option<f32> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, value)| *value)
}
