//! LoRA files in the format of PEFT and diffusers: `pytorch_lora_weights.safetensors` with tensors
//! `transformer.<module>.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`, and PEFT's settings as JSON in
//! the header under `lora_adapter_metadata`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::safetensors::save as save_tensors;
use super::{TensorFile, did_you_mean, output_folder};
use crate::device::Tensor;
use crate::models::lora::{Adapter, Factor, Module, matches};

/// The file's name in a folder.
pub const FILE: &str = "pytorch_lora_weights.safetensors";
const METADATA: &str = "lora_adapter_metadata";
/// What other programs put before a module's name.
const PREFIXES: [&str; 4] = ["transformer.", "base_model.model.transformer.", "base_model.model.", ""];

/// Writes `adapter` into `folder`. `rank`, `alpha` and `targets` are those it was made with.
///
/// # Errors
/// Names the file if it cannot be written.
pub fn save(
    folder: &Path,
    adapter: &Adapter,
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
    let names = adapter.names(modules).into_iter().map(|n| format!("transformer.{n}"));
    save_tensors(&folder.join(FILE), names.zip(adapter.tensors()), &metadata)
}

/// The factors of one module while a file is read.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    alpha: Option<f32>,
}

/// Reads the adapter in `path`, a file or a folder that holds [`FILE`].
///
/// # Errors
/// If there is no such file, it holds no LoRA for these `modules`, a key names no module (the nearest is offered), a
/// factor lacks its partner or has the wrong shape, or a value is not finite.
pub fn load(path: &Path, modules: &[Module]) -> Result<Adapter> {
    let path = find(path)?;
    let file = TensorFile::open(&path)?;
    let shown = path.display();
    let mut found: BTreeMap<usize, Parts> = BTreeMap::new();
    for name in file.names() {
        let Some((module, part)) = split_key(name) else {
            bail!(
                "{shown}: tensor '{name}' is not part of a LoRA: expected names ending in .lora_A.weight or .lora_B.weight"
            );
        };
        let Some(index) = find_module(module, modules) else {
            let short = PREFIXES.iter().find_map(|p| module.strip_prefix(p)).unwrap_or(module);
            let hint = did_you_mean(short, modules.iter().map(|m| m.name.as_str()));
            bail!("{shown}: tensor '{name}' is for no layer of this transformer{hint}");
        };
        let tensor = file.tensor(name)?;
        ensure!(
            tensor.data().iter().all(|v| v.is_finite()),
            "{shown}: tensor '{name}' holds a value that is not finite"
        );
        let parts = found.entry(index).or_default();
        match part {
            Part::A => parts.a = Some(tensor),
            Part::B => parts.b = Some(tensor),
            Part::Alpha => parts.alpha = tensor.data().first().copied(),
        }
    }
    ensure!(!found.is_empty(), "{shown}: holds no tensors");
    let settings = Settings::read(&file)?;

    let mut scales = Vec::new();
    let mut factors: Vec<Option<Factor>> = modules.iter().map(|_| None).collect();
    for (index, parts) in found {
        let module = &modules[index];
        let name = &module.name;
        let a = parts.a.with_context(|| format!("{shown}: '{name}' has lora_B but no lora_A"))?;
        let b = parts.b.with_context(|| format!("{shown}: '{name}' has lora_A but no lora_B"))?;
        let rank = a.dim(0);
        for (what, tensor, want) in [("lora_A", &a, [rank, module.inputs]), ("lora_B", &b, [module.outputs, rank])] {
            ensure!(
                tensor.shape() == want,
                "{shown}: '{name}' {what} has shape {:?}, expected {want:?}",
                tensor.shape()
            );
        }
        let alpha = parts.alpha.or(settings.alpha(name)).unwrap_or(rank as f32);
        scales.push(if settings.rslora { alpha / (rank as f32).sqrt() } else { alpha / rank as f32 });
        factors[index] = Some(Factor { a, b });
    }
    // One scale for the whole adapter; where a layer's own differs, the difference goes into its B.
    let scale = scales[0];
    for (factor, own) in factors.iter_mut().flatten().zip(scales) {
        if own != scale {
            factor.b.data_mut().iter_mut().for_each(|v| *v *= own / scale);
        }
    }
    Ok(Adapter::from_factors(scale, factors))
}

fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        ensure!(path.exists(), "LoRA: no such file or folder: {}", path.display());
        return Ok(path.to_path_buf());
    }
    let inside = path.join(FILE);
    ensure!(inside.exists(), "LoRA: {} has no {FILE}", path.display());
    Ok(inside)
}

enum Part {
    A,
    B,
    Alpha,
}

fn split_key(name: &str) -> Option<(&str, Part)> {
    let a = [".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight"];
    let b = [".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight"];
    let strip = |tails: &[&str]| tails.iter().find_map(|t| name.strip_suffix(t));
    strip(&a)
        .map(|m| (m, Part::A))
        .or_else(|| strip(&b).map(|m| (m, Part::B)))
        .or_else(|| name.strip_suffix(".alpha").map(|m| (m, Part::Alpha)))
}

fn find_module(name: &str, modules: &[Module]) -> Option<usize> {
    PREFIXES.iter().filter_map(|p| name.strip_prefix(p)).find_map(|n| modules.iter().position(|m| m.name == n))
}

/// What the header says about scaling.
struct Settings {
    alpha: Option<f32>,
    patterns: Vec<(String, f32)>,
    rslora: bool,
}

impl Settings {
    fn read(file: &TensorFile) -> Result<Self> {
        let Some(text) = file.metadata().get(METADATA) else {
            return Ok(Self { alpha: None, patterns: Vec::new(), rslora: false });
        };
        let shown = file.path().display();
        let all: Map<String, Value> =
            serde_json::from_str(text).with_context(|| format!("{shown}: header {METADATA}"))?;
        let get = |key: &str| all.get(&format!("transformer.{key}")).or_else(|| all.get(key));
        let flag = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
        ensure!(!flag("use_dora"), "{shown}: is a DoRA, which is not supported");
        let number = |v: &Value| v.as_f64().map(|v| v as f32);
        let patterns = get("alpha_pattern").and_then(Value::as_object);
        let patterns = patterns.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), number(v)?))).collect();
        Ok(Self { alpha: get("lora_alpha").and_then(number), patterns, rslora: flag("use_rslora") })
    }

    /// `alpha` of module `name`.
    fn alpha(&self, name: &str) -> Option<f32> {
        self.patterns.iter().find(|(target, _)| matches(name, target)).map(|(_, alpha)| *alpha).or(self.alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::lora::LoraPlacement;
    use crate::ops::testing::random;

    fn modules() -> Vec<Module> {
        let module = |name: &str, inputs, outputs| Module { name: name.into(), inputs, outputs };
        vec![module("blocks.0.attn.to_q", 6, 5), module("blocks.0.ff.net.2", 7, 4)]
    }

    fn adapter() -> Adapter {
        let factor = |i: usize, m: &Module| Factor {
            a: random(&[2, m.inputs], i as u64),
            b: random(&[m.outputs, 2], 9 + i as u64),
        };
        Adapter::from_factors(4.0, modules().iter().enumerate().map(|(i, m)| Some(factor(i, m))).collect())
    }

    fn write(folder: &Path, names: &[&str], metadata: &BTreeMap<String, String>) -> PathBuf {
        let adapter = adapter();
        let path = folder.join(FILE);
        let tensors: Vec<&Tensor> = adapter.tensors().collect();
        save_tensors(&path, names.iter().map(|n| n.to_string()).zip(tensors), metadata).unwrap();
        path
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let targets = ["attn.to_q", "ff.net.2"].map(String::from);
        save(dir.path(), &adapter(), &modules(), 2, 8.0, &targets).unwrap();
        let again = load(dir.path(), &modules()).unwrap();
        assert_eq!(again.placement(), adapter().placement());
        assert_eq!(again.scale, 4.0);
        assert!(again.tensors().zip(adapter().tensors()).all(|(a, b)| a.data() == b.data()));
    }

    #[test]
    fn without_metadata_alpha_is_the_rank() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            ["base_model.model.blocks.0.attn.to_q.lora_A.weight", "base_model.model.blocks.0.attn.to_q.lora_B.weight"];
        let loaded = load(&write(dir.path(), &names, &BTreeMap::new()), &modules()).unwrap();
        assert_eq!((loaded.scale, loaded.placement()), (1.0, LoraPlacement(vec![0])));
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&[&str], &str); 4] = [
            (&["transformer.blocks.0.attn.to_q.lora_A.weight"], "'blocks.0.attn.to_q' has lora_A but no lora_B"),
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
            let error = load(&write(dir.path(), names, &BTreeMap::new()), &modules()).err().unwrap().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
