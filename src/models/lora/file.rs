//! LoRA files in the format of PEFT and diffusers: `pytorch_lora_weights.safetensors` with tensors
//! `transformer.<module>.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`, and PEFT's settings as JSON in
//! the header under `lora_adapter_metadata`. Folders that PEFT itself saved (`adapter_model.safetensors`, settings in
//! `adapter_config.json`) are read too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::settings::{METADATA, PEFT_FILE, Settings};
use super::{AdapterBank, Layout, Module, Slot};
use crate::device::{Device, Tensor};
use crate::io::safetensors::save as save_tensors;
use crate::io::{TensorFile, did_you_mean, output_folder, short};
use crate::models::names::transformer::{self, Original};
use crate::ops::affine::{self, Affine};
use crate::ops::{copy, norm};

#[cfg(test)]
mod tests;

/// The file's name in a folder.
pub const FILE: &str = "pytorch_lora_weights.safetensors";
/// The transformer, as diffusers prefixes names and settings.
pub const TRANSFORMER: &str = "transformer";
/// The CLIP encoders, likewise.
pub const TEXT_ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];
/// What other programs put before a module's name.
const PREFIXES: [&str; 7] = [
    "transformer.",
    "base_model.model.transformer.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_unet_",
    "",
];
/// What sd-scripts puts before the layers of the encoders, whose names have no dots there.
const FLAT_ENCODERS: [(&str, &str); 3] =
    [("lora_te1_", TEXT_ENCODERS[0]), ("lora_te2_", TEXT_ENCODERS[1]), ("lora_te3_", T5)];
const T5: &str = "text_encoder_3";
/// What the names of other methods' tensors hold.
const OTHER_METHODS: [(&str, &str); 5] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_embedding_", "an adapter of embeddings"),
];

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

/// The names of one layer's tensors in a file.
#[derive(Clone, Default)]
struct Names {
    a: Option<String>,
    b: Option<String>,
    alpha: Option<String>,
}

/// A LoRA file whose names are understood.
pub struct LoraFile {
    file: TensorFile,
    /// By component of the pipeline and layer.
    layers: BTreeMap<&'static str, BTreeMap<String, Names>>,
}

/// The adapter of the transformer in `path`, which has nothing for other components; see [`LoraFile`].
///
/// # Errors
/// As [`LoraFile::open`] and [`LoraFile::bank`].
pub fn load(path: &Path, modules: &[Module], device: &Device) -> Result<AdapterBank> {
    let file = LoraFile::open(path)?;
    let bank = file.bank(TRANSFORMER, modules, device)?;
    bank.with_context(|| format!("{}: holds nothing for the transformer", file.file.path().display()))
}

impl LoraFile {
    /// Opens `path`, a file or a folder that holds [`FILE`] or what PEFT saves.
    ///
    /// # Errors
    /// If there is no such file, a name is not that of a LoRA's tensor, or a tensor comes twice.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(&find(path)?)?;
        let shown = file.path().display();
        let mut layers: BTreeMap<&str, BTreeMap<String, Names>> = BTreeMap::new();
        for name in file.names() {
            let Some((layer, entry)) = split_key(name) else {
                if let Some((_, method)) = OTHER_METHODS.iter().find(|(mark, _)| name.contains(mark)) {
                    bail!("{shown}: tensor '{}' is of {method}, which is not supported", short(name));
                }
                bail!(
                    "{shown}: tensor '{}' is not part of a LoRA: expected names ending in .lora_A.weight or .lora_B.weight",
                    short(name)
                );
            };
            let (component, layer) = component_of(layer);
            ensure!(
                component != T5,
                "{shown}: tensor '{}' is for T5, on which adapters are not supported",
                short(name)
            );
            let names = layers.entry(component).or_default().entry(layer.to_string()).or_default();
            let place = match entry {
                Entry::A => &mut names.a,
                Entry::B => &mut names.b,
                Entry::Alpha => &mut names.alpha,
            };
            let before = place.replace(name.to_string());
            ensure!(before.is_none(), "{shown}: tensor '{}' comes twice, under two prefixes", short(name));
        }
        ensure!(!layers.is_empty(), "{shown}: holds no tensors");
        Ok(Self { file, layers })
    }

    /// Whether it has factors for `component`.
    pub fn has(&self, component: &str) -> bool {
        self.layers.contains_key(component)
    }

    /// The factors for `component`, one of [`TRANSFORMER`] and [`TEXT_ENCODERS`], as [`Slot::Theta`] of a bank of its
    /// `modules`; nothing if it has none. A scale of a layer's own goes into its `B`.
    ///
    /// # Errors
    /// If a name is of none of `modules` (the nearest is offered), a factor lacks its partner or has the wrong shape, the
    /// settings contradict it or are of another method, or a value is not finite.
    pub fn bank(&self, component: &str, modules: &[Module], device: &Device) -> Result<Option<AdapterBank>> {
        let shown = self.file.path().display();
        let Some(layers) = self.layers.get(component) else { return Ok(None) };
        let settings = Settings::read(&self.file, component)?;
        let tensor = |name: &String| {
            let tensor = self.file.tensor(name, device)?;
            let finite = norm::first_non_finite(&tensor).is_none();
            ensure!(finite, "{shown}: tensor '{name}' holds a value that is not finite");
            Ok(tensor)
        };
        /// One layer's factors and its scale.
        struct Read {
            a: Tensor,
            b: Tensor,
            scale: f32,
        }
        let mut read: Vec<Option<Read>> = modules.iter().map(|_| None).collect();
        for (layer, names) in layers {
            let targets = targets(layer, modules);
            if targets.is_empty() {
                let hint = did_you_mean(layer, modules.iter().map(|m| m.name.as_str()));
                bail!("{shown}: '{}' is no layer of {component} that an adapter can be on{hint}", short(layer));
            }
            let inputs = modules[targets[0].index].inputs;
            let outputs: usize = targets.iter().map(|t| modules[t.index].outputs).sum();
            let a = tensor(names.a.as_ref().with_context(|| format!("{shown}: '{layer}' has no lora_A"))?)?;
            let b = tensor(names.b.as_ref().with_context(|| format!("{shown}: '{layer}' has no lora_B"))?)?;
            let rank = a.shape().first().copied().unwrap_or(0);
            ensure!(rank > 0, "{shown}: '{layer}' lora_A has shape {:?}, expected [rank, {inputs}]", a.shape());
            for (what, tensor, want) in [("lora_A", &a, [rank, inputs]), ("lora_B", &b, [outputs, rank])] {
                ensure!(
                    tensor.shape() == want,
                    "{shown}: '{layer}' {what} has shape {:?}, expected {want:?}",
                    tensor.shape()
                );
            }
            if let Some(r) = settings.rank(layer) {
                ensure!(r == rank as f32, "{shown}: '{layer}' has rank {rank}, its settings say {r}");
            }
            let own = names.alpha.as_ref().map(tensor).transpose()?.and_then(|t| t.to_host().first().copied());
            let alpha = own.or(settings.alpha(layer)).unwrap_or(rank as f32);
            ensure!(alpha.is_finite(), "{shown}: '{layer}' has alpha {alpha}");
            let scale = if settings.rslora { alpha / (rank as f32).sqrt() } else { alpha / rank as f32 };
            let mut first = 0;
            for Target { index, swapped } in targets {
                let rows = first..first + modules[index].outputs;
                first = rows.end;
                let mut part = b.slice(rows);
                if swapped {
                    let half = part.dim(0) / 2;
                    part = copy::concat(&[&part.slice(half..2 * half), &part.slice(0..half)]);
                }
                let before = read[index].replace(Read { a: a.clone(), b: part, scale });
                ensure!(before.is_none(), "{shown}: '{layer}' comes twice, under two names");
            }
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
        Ok(Some(bank))
    }
}

/// A module that a layer of a file is or is a part of.
struct Target {
    index: usize,
    /// Whether the halves of its outputs are the other way round in the file.
    swapped: bool,
}

/// The modules that `layer` is called by anyone's name of it, in the order of its outputs.
fn targets(layer: &str, modules: &[Module]) -> Vec<Target> {
    let is_layer = |name: &str| name == layer || name.replace('.', "_") == layer;
    if let Some(index) = modules.iter().position(|m| is_layer(&m.name)) {
        return vec![Target { index, swapped: false }];
    }
    let originals = modules.iter().enumerate().filter_map(|(index, m)| Some((index, transformer::of(m)?)));
    let mut parts: Vec<(usize, Original)> = originals.filter(|(_, o)| is_layer(&o.name)).collect();
    parts.sort_by_key(|(_, o)| o.part);
    if parts.first().is_none_or(|(_, o)| o.part.1 != parts.len()) {
        return Vec::new();
    }
    parts.into_iter().map(|(index, o)| Target { index, swapped: o.swapped }).collect()
}

fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        ensure!(path.exists(), "LoRA: no such file or folder: {}", path.display());
        return Ok(path.to_path_buf());
    }
    // A run has what it exported in a folder of its own.
    let places = [path.join(FILE), path.join(PEFT_FILE), path.join("lora").join(FILE)];
    if let Some(found) = places.into_iter().find(|p| p.exists()) {
        return Ok(found);
    }
    let shown = path.display();
    if path.join("state.json").exists() || path.join("checkpoints").exists() {
        bail!("LoRA: {shown} is a checkpoint or a run without a LoRA; 'engine export --checkpoint {shown}' makes one");
    }
    bail!("LoRA: {shown} has neither {FILE} nor {PEFT_FILE}")
}

/// What a tensor of a LoRA file is.
enum Entry {
    A,
    B,
    Alpha,
}

fn split_key(name: &str) -> Option<(&str, Entry)> {
    let a = ["lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down", "lora_down"];
    let b = ["lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up", "lora_up"];
    let strip = |tails: &[&str]| {
        let name = name.strip_suffix(".weight")?;
        tails.iter().find_map(|t| name.strip_suffix(t)?.strip_suffix('.'))
    };
    strip(&a)
        .map(|m| (m, Entry::A))
        .or_else(|| strip(&b).map(|m| (m, Entry::B)))
        .or_else(|| name.strip_suffix(".alpha").map(|m| (m, Entry::Alpha)))
}

/// The component that a layer is of, and its name there.
fn component_of(name: &str) -> (&'static str, &str) {
    for (prefix, component) in FLAT_ENCODERS {
        if let Some(layer) = name.strip_prefix(prefix) {
            return (component, layer);
        }
    }
    for component in TEXT_ENCODERS.into_iter().chain([T5]) {
        if let Some(layer) = name.strip_prefix(component).and_then(|rest| rest.strip_prefix('.')) {
            return (component, layer);
        }
    }
    (TRANSFORMER, PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name))
}
