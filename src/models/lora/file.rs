//! LoRA files in the format of PEFT and diffusers: `pytorch_lora_weights.safetensors` with tensors
//! `transformer.<module>.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`, and PEFT's settings as JSON in
//! the header under `lora_adapter_metadata`. Folders that PEFT itself saved (`adapter_model.safetensors`, settings in
//! `adapter_config.json`) are read too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{AdapterBank, Layout, Module, Slot, matches};
use crate::device::{Device, Tensor};
use crate::io::safetensors::save as save_tensors;
use crate::io::{TensorFile, did_you_mean, output_folder, read_json, short};
use crate::ops::affine::{self, Affine};
use crate::ops::{copy, norm};

/// The file's name in a folder.
pub const FILE: &str = "pytorch_lora_weights.safetensors";
const METADATA: &str = "lora_adapter_metadata";
/// What PEFT's `save_pretrained` writes instead, and its settings beside it.
const PEFT_FILE: &str = "adapter_model.safetensors";
const PEFT_SETTINGS: &str = "adapter_config.json";
/// What other programs put before a module's name.
const PREFIXES: [&str; 4] = ["transformer.", "base_model.model.transformer.", "base_model.model.", ""];

/// Writes `slot` of `bank` into `folder`. `rank`, `alpha` and `targets` are those it was made with.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn save(
    folder: &Path,
    bank: &AdapterBank,
    slot: Slot,
    modules: &[Module],
    rank: usize,
    alpha: f32,
    targets: &[String],
) -> Result<()> {
    output_folder(folder)?;
    let settings = json!({
        "transformer.peft_type": "LORA",
        "transformer.r": rank,
        "transformer.lora_alpha": alpha,
        "transformer.target_modules": targets,
        "transformer.rank_pattern": {},
        "transformer.alpha_pattern": {},
        "transformer.lora_dropout": 0.0,
        "transformer.bias": "none",
        "transformer.init_lora_weights": "gaussian",
        "transformer.use_rslora": false,
        "transformer.use_dora": false,
    });
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (METADATA.to_string(), serde_json::to_string_pretty(&settings)?),
    ]);
    let tensors = bank.named(slot, modules).into_iter().map(|(name, t)| (format!("transformer.{name}"), t));
    save_tensors(&folder.join(FILE), tensors, &metadata)
}

/// The factors of one module while a file is read.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    alpha: Option<Tensor>,
}

/// Reads the adapter in `path`, a file or a folder that holds [`FILE`] or what PEFT saves, as [`Slot::Theta`] of a bank. A
/// scale of a layer's own goes into its `B`.
///
/// # Errors
/// If there is no such file, it holds no LoRA for these `modules`, a key names no module (the nearest is offered), a
/// factor lacks its partner, has the wrong shape or comes twice, the settings contradict it or are of another method,
/// or a value is not finite.
pub fn load(path: &Path, modules: &[Module], device: &Device) -> Result<AdapterBank> {
    let path = find(path)?;
    let file = TensorFile::open(&path)?;
    let shown = path.display();
    let mut found: BTreeMap<usize, Parts> = BTreeMap::new();
    for name in file.names() {
        let Some((module, part)) = split_key(name) else {
            bail!(
                "{shown}: tensor '{}' is not part of a LoRA: expected names ending in .lora_A.weight or .lora_B.weight",
                short(name)
            );
        };
        let Some(index) = find_module(module, modules) else {
            let bare = PREFIXES.iter().find_map(|p| module.strip_prefix(p)).unwrap_or(module);
            let hint = did_you_mean(bare, modules.iter().map(|m| m.name.as_str()));
            bail!("{shown}: tensor '{}' is for no layer of this transformer{hint}", short(name));
        };
        let tensor = file.tensor(name, device)?;
        ensure!(norm::first_non_finite(&tensor).is_none(), "{shown}: tensor '{name}' holds a value that is not finite");
        let parts = found.entry(index).or_default();
        let slot = match part {
            Entry::A => &mut parts.a,
            Entry::B => &mut parts.b,
            Entry::Alpha => &mut parts.alpha,
        };
        ensure!(slot.replace(tensor).is_none(), "{shown}: tensor '{name}' comes twice, under two prefixes");
    }
    ensure!(!found.is_empty(), "{shown}: holds no tensors");
    let settings = Settings::read(&file, modules)?;

    /// One layer's factors and its scale.
    struct Read {
        a: Tensor,
        b: Tensor,
        scale: f32,
    }
    let mut read: Vec<Option<Read>> = modules.iter().map(|_| None).collect();
    for (index, parts) in found {
        let module = &modules[index];
        let name = &module.name;
        let a = parts.a.with_context(|| format!("{shown}: '{name}' has no lora_A"))?;
        let b = parts.b.with_context(|| format!("{shown}: '{name}' has no lora_B"))?;
        let rank = a.shape().first().copied().unwrap_or(0);
        ensure!(rank > 0, "{shown}: '{name}' lora_A has shape {:?}, expected [rank, {}]", a.shape(), module.inputs);
        for (what, tensor, want) in [("lora_A", &a, [rank, module.inputs]), ("lora_B", &b, [module.outputs, rank])] {
            ensure!(
                tensor.shape() == want,
                "{shown}: '{name}' {what} has shape {:?}, expected {want:?}",
                tensor.shape()
            );
        }
        if let Some(r) = settings.rank(name) {
            ensure!(r == rank as f32, "{shown}: '{name}' has rank {rank}, its settings say {r}");
        }
        let own = parts.alpha.and_then(|t| t.to_host().first().copied());
        let alpha = own.or(settings.alpha(name)).unwrap_or(rank as f32);
        ensure!(alpha.is_finite(), "{shown}: '{name}' has alpha {alpha}");
        let scale = if settings.rslora { alpha / (rank as f32).sqrt() } else { alpha / rank as f32 };
        read[index] = Some(Read { a, b, scale });
    }
    // One scale for the whole adapter; where a layer's own differs, the difference goes into its B.
    let scale = read.iter().flatten().map(|r| r.scale).find(|s| *s != 0.0).unwrap_or(1.0);
    let layout = Layout::new(modules, read.iter().map(|r| r.as_ref().map(|r| r.a.dim(0))));
    let mut flat = Tensor::scratch(device, &[layout.len()]);
    for (index, r) in read.iter().enumerate() {
        let (Some(r), Some(place)) = (r, layout.place(index)) else { continue };
        let b = affine::forward(&r.b, Affine { scale: r.scale / scale, ..Affine::default() });
        copy::flat_into(&mut flat, place.a, &r.a);
        copy::flat_into(&mut flat, place.b, &b);
    }
    let mut bank = AdapterBank::new(Arc::new(layout), scale);
    bank.set(Slot::Theta, flat);
    Ok(bank)
}

fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        ensure!(path.exists(), "LoRA: no such file or folder: {}", path.display());
        return Ok(path.to_path_buf());
    }
    let inside = [FILE, PEFT_FILE].map(|name| path.join(name)).into_iter().find(|p| p.exists());
    inside.with_context(|| format!("LoRA: {} has neither {FILE} nor {PEFT_FILE}", path.display()))
}

/// What a tensor of a LoRA file is.
enum Entry {
    A,
    B,
    Alpha,
}

fn split_key(name: &str) -> Option<(&str, Entry)> {
    let a = [".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight"];
    let b = [".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight"];
    let strip = |tails: &[&str]| tails.iter().find_map(|t| name.strip_suffix(t));
    strip(&a)
        .map(|m| (m, Entry::A))
        .or_else(|| strip(&b).map(|m| (m, Entry::B)))
        .or_else(|| name.strip_suffix(".alpha").map(|m| (m, Entry::Alpha)))
}

fn find_module(name: &str, modules: &[Module]) -> Option<usize> {
    PREFIXES.iter().filter_map(|p| name.strip_prefix(p)).find_map(|n| modules.iter().position(|m| m.name == n))
}

/// What PEFT's settings say about rank and scaling.
#[derive(Default)]
struct Settings {
    rank: Option<f32>,
    alpha: Option<f32>,
    rank_pattern: Vec<(String, f32)>,
    alpha_pattern: Vec<(String, f32)>,
    rslora: bool,
}

impl Settings {
    /// The settings in the header of `file` or beside it.
    fn read(file: &TensorFile, modules: &[Module]) -> Result<Self> {
        let mut shown = file.path().display().to_string();
        let beside = file.path().with_file_name(PEFT_SETTINGS);
        let all: Map<String, Value> = match file.metadata().get(METADATA) {
            Some(text) => serde_json::from_str(text).with_context(|| format!("{shown}: header {METADATA}"))?,
            None if file.path().ends_with(PEFT_FILE) && beside.exists() => {
                shown = beside.display().to_string();
                read_json(&beside)?
            }
            None => return Ok(Self::default()),
        };
        let get = |key: &str| all.get(&format!("transformer.{key}")).or_else(|| all.get(key));
        let flag = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
        ensure!(!flag("use_dora"), "{shown}: is a DoRA, which is not supported");
        let number = |key: &str| get(key).and_then(Value::as_f64).map(|v| v as f32);
        let pattern = |key: &str| -> Result<Vec<(String, f32)>> {
            let entries = get(key).and_then(Value::as_object).into_iter().flatten();
            let read = |(target, value): (&String, &Value)| {
                // PEFT takes regular expressions; diffusers writes names, anchored at their start.
                let target = target.trim_start_matches('^').trim_end_matches('$');
                let known = modules.iter().any(|m| matches(&m.name, target));
                ensure!(known, "{shown}: {key} '{target}' is no layer of this transformer");
                let value = value.as_f64().with_context(|| format!("{shown}: {key} '{target}' is not a number"))?;
                Ok((target.to_string(), value as f32))
            };
            entries.map(read).collect()
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
    fn rank(&self, name: &str) -> Option<f32> {
        find_pattern(&self.rank_pattern, name).or(self.rank)
    }

    /// `alpha` of module `name`.
    fn alpha(&self, name: &str) -> Option<f32> {
        find_pattern(&self.alpha_pattern, name).or(self.alpha)
    }
}

fn find_pattern(patterns: &[(String, f32)], name: &str) -> Option<f32> {
    patterns.iter().find(|(target, _)| matches(name, target)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    fn modules() -> Vec<Module> {
        let module = |name: &str, inputs, outputs| Module { name: name.into(), inputs, outputs };
        vec![module("blocks.0.attn.to_q", 6, 5), module("blocks.0.ff.net.2", 7, 4)]
    }

    fn bank() -> AdapterBank {
        let layout = Layout::selected(&modules(), &[true; 2], 2);
        let flat = random(&[layout.len()], 1);
        let mut bank = AdapterBank::new(Arc::new(layout), 4.0);
        bank.set(Slot::Theta, flat);
        bank
    }

    /// The bank's factors in their order.
    fn factors() -> Vec<Tensor> {
        bank().named(Slot::Theta, &modules()).into_iter().map(|(_, t)| t).collect()
    }

    fn load(path: &Path) -> Result<AdapterBank> {
        super::load(path, &modules(), &Device::Cpu)
    }

    fn write(folder: &Path, names: &[&str], metadata: &BTreeMap<String, String>) -> PathBuf {
        let path = folder.join(FILE);
        save_tensors(&path, names.iter().map(|n| n.to_string()).zip(factors()), metadata).unwrap();
        path
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let targets = ["attn.to_q", "ff.net.2"].map(String::from);
        save(dir.path(), &bank(), Slot::Theta, &modules(), 2, 8.0, &targets).unwrap();
        let again = load(dir.path()).unwrap();
        assert_eq!((again.layout(), again.scale()), (bank().layout(), 4.0));
        assert_eq!(again.numbers(Slot::Theta).host(), bank().numbers(Slot::Theta).host());
    }

    #[test]
    fn without_metadata_alpha_is_the_rank() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            ["base_model.model.blocks.0.attn.to_q.lora_A.weight", "base_model.model.blocks.0.attn.to_q.lora_B.weight"];
        let loaded = load(&write(dir.path(), &names, &BTreeMap::new())).unwrap();
        assert_eq!(loaded.scale(), 1.0);
        assert!(loaded.layout().place(0).is_some() && loaded.layout().place(1).is_none());
    }

    const TO_Q: [&str; 2] =
        ["transformer.blocks.0.attn.to_q.lora_A.weight", "transformer.blocks.0.attn.to_q.lora_B.weight"];
    const BOTH: [&str; 4] = [
        TO_Q[0],
        TO_Q[1],
        "transformer.blocks.0.ff.net.2.lora_A.weight",
        "transformer.blocks.0.ff.net.2.lora_B.weight",
    ];

    fn header(settings: &Value) -> BTreeMap<String, String> {
        BTreeMap::from([(METADATA.to_string(), settings.to_string())])
    }

    #[test]
    fn a_scale_of_a_layers_own_goes_into_its_b() {
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({
            "transformer.r": 2, "transformer.lora_alpha": 8, "transformer.rank_pattern": {"^blocks.0.ff.net.2": 2},
            "transformer.alpha_pattern": {"^blocks.0.ff.net.2": 2},
        });
        let loaded = load(&write(dir.path(), &BOTH, &header(&settings))).unwrap();
        assert_eq!(loaded.scale(), 4.0);
        for (i, ((_, got), want)) in loaded.named(Slot::Theta, &modules()).iter().zip(factors()).enumerate() {
            let folded = if i == 3 { 0.25 } else { 1.0 };
            assert!(got.host().iter().zip(want.host()).all(|(g, w)| *g == w * folded), "tensor {i}");
        }
        let rslora = json!({ "transformer.r": 2, "transformer.lora_alpha": 8, "transformer.use_rslora": true });
        let loaded = load(&write(dir.path(), &BOTH, &header(&rslora))).unwrap();
        assert_eq!(loaded.scale(), 8.0 / 2f32.sqrt());
    }

    #[test]
    fn alpha_may_come_as_a_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let alpha = Tensor::from_slice(&Device::Cpu, &[6.0], &[1]);
        let tensors = factors().into_iter().take(2).chain([alpha]);
        let names = [TO_Q[0], TO_Q[1], "transformer.blocks.0.attn.to_q.alpha"].map(String::from);
        save_tensors(&dir.path().join(FILE), names.into_iter().zip(tensors), &BTreeMap::new()).unwrap();
        assert_eq!(load(dir.path()).unwrap().scale(), 3.0);
    }

    #[test]
    fn a_folder_that_peft_saved_has_its_settings_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::rename(write(dir.path(), &TO_Q, &BTreeMap::new()), dir.path().join(PEFT_FILE)).unwrap();
        std::fs::write(dir.path().join(PEFT_SETTINGS), r#"{"r": 2, "lora_alpha": 6, "use_dora": false}"#).unwrap();
        assert_eq!(load(dir.path()).unwrap().scale(), 3.0);
        assert_eq!(load(&dir.path().join(PEFT_FILE)).unwrap().scale(), 3.0);
    }

    #[test]
    fn settings_that_contradict_the_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (settings, want) in [
            (json!({ "transformer.r": 3 }), "'blocks.0.attn.to_q' has rank 2, its settings say 3"),
            (json!({ "transformer.use_dora": true }), "is a DoRA, which is not supported"),
            (json!({ "transformer.alpha_pattern": {"up.*": 4} }), "alpha_pattern 'up.*' is no layer"),
        ] {
            let error = load(&write(dir.path(), &TO_Q, &header(&settings))).err().unwrap().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&[&str], &str); 6] = [
            (&["transformer.blocks.0.attn.to_q.alpha"], "'blocks.0.attn.to_q' has no lora_A"),
            (
                &["blocks.0.attn.to_q.lora_A.weight", "transformer.blocks.0.attn.to_q.lora_A.weight"],
                "comes twice, under two prefixes",
            ),
            (&["transformer.blocks.0.attn.to_q.lora_A.weight"], "'blocks.0.attn.to_q' has no lora_B"),
            (
                &["transformer.blocks.0.attn.to_qq.lora_A.weight"],
                "is for no layer of this transformer; did you mean 'blocks.0.attn.to_q'?",
            ),
            (&["something"], "tensor 'something' is not part of a LoRA"),
            (
                &["transformer.blocks.0.ff.net.2.lora_A.weight", "transformer.blocks.0.ff.net.2.lora_B.weight"],
                "'blocks.0.ff.net.2' lora_A has shape [2, 6], expected [2, 7]",
            ),
        ];
        for (names, want) in cases {
            let error = load(&write(dir.path(), names, &BTreeMap::new())).err().unwrap().to_string();
            assert!(error.contains(want), "{error}");
        }
        let mut bad = copy::owned(&factors()[0]);
        bad.host_mut()[3] = f32::NAN;
        let named = TO_Q.map(String::from).into_iter().zip([bad, factors().remove(1)]);
        save_tensors(&dir.path().join(FILE), named, &BTreeMap::new()).unwrap();
        let error = load(dir.path()).err().unwrap().to_string();
        assert!(error.ends_with("to_q.lora_A.weight' holds a value that is not finite"), "{error}");
        let scalar = Tensor::from_slice(&Device::Cpu, &[1.0], &[]);
        let named = TO_Q.map(String::from).into_iter().zip([scalar.clone(), scalar]);
        save_tensors(&dir.path().join(FILE), named, &BTreeMap::new()).unwrap();
        let error = load(dir.path()).err().unwrap().to_string();
        assert!(error.ends_with("lora_A has shape [], expected [rank, 6]"), "{error}");
    }
}
