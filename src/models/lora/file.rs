//! LoRA files in the format of PEFT and diffusers: `pytorch_lora_weights.safetensors` with tensors
//! `transformer.<module>.lora_A.weight` `[rank, in]` and `.lora_B.weight` `[out, rank]`, and PEFT's settings as JSON in
//! the header under `lora_adapter_metadata`. Folders that PEFT itself saved (`adapter_model.safetensors`, settings in
//! `adapter_config.json`) are read too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::settings::Settings;
use super::{AdapterBank, Layout, Module, Slot};
use crate::device::{Device, Tensor};
use crate::io::safetensors::save as save_tensors;
use crate::io::{TensorFile, did_you_mean, output_folder, short};
use crate::models::mmdit::original::{self, Original};
use crate::ops::affine::{self, Affine};
use crate::ops::{copy, norm};

/// The file's name in a folder.
pub const FILE: &str = "pytorch_lora_weights.safetensors";
/// Where its header has PEFT's settings.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// What PEFT's `save_pretrained` writes instead.
pub(super) const PEFT_FILE: &str = "adapter_model.safetensors";
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
    let originals = modules.iter().enumerate().filter_map(|(index, m)| Some((index, original::of(m)?)));
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::ops::testing::random;

    const PEFT_SETTINGS: &str = "adapter_config.json";

    fn modules() -> Vec<Module> {
        let module = |name: &str, inputs, outputs| Module { name: name.into(), inputs, outputs, trainable: true };
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
            "transformer.alpha_pattern": {"ff.net.[0-9]+": 2, "^ff.net.2": 100, "net": 100},
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
    fn a_layer_is_found_by_every_name_it_has_and_fused_ones_are_taken_apart() {
        let module = |name: &str, outputs| Module { name: name.into(), inputs: 6, outputs, trainable: true };
        let block = |layer: &str| format!("transformer_blocks.0.{layer}");
        let modules = [
            module(&block("attn.to_q"), 6),
            module(&block("attn.to_k"), 6),
            module(&block("attn.to_v"), 6),
            module(&block("ff.net.0.proj"), 24),
            module("norm_out.linear", 12),
        ];
        let dir = tempfile::tempdir().unwrap();
        let bank = |tensors: Vec<(String, Tensor)>| {
            let path = dir.path().join("lora.safetensors");
            save_tensors(&path, tensors, &BTreeMap::new()).unwrap();
            super::load(&path, &modules, &Device::Cpu)
        };
        let a = |seed: u64| random(&[2, 6], seed);
        let [q, k, v, up, norm] =
            [(6, 11), (6, 12), (6, 13), (24, 14), (12, 15)].map(|(n, seed)| random(&[n, 2], seed));
        let named = |layer: String, a: Tensor, b: &Tensor| {
            [
                (format!("transformer.{layer}.lora_A.weight"), a),
                (format!("transformer.{layer}.lora_B.weight"), b.clone()),
            ]
        };
        let diffusers = [
            named(block("attn.to_q"), a(1), &q),
            named(block("attn.to_k"), a(1), &k),
            named(block("attn.to_v"), a(1), &v),
            named(block("ff.net.0.proj"), a(2), &up),
            named("norm_out.linear".into(), a(3), &norm),
        ];
        let want = bank(diffusers.concat()).unwrap();
        let fused = copy::concat(&[&q, &k, &v]);
        // Scale and shift here, shift and scale in the original.
        let swapped = copy::concat(&[&norm.slice(6..12), &norm.slice(0..6)]);
        let styles = [
            ("diffusion_model.", ".", [".lora_A.weight", ".lora_B.weight"]),
            ("model.diffusion_model.", ".", [".lora_down.weight", ".lora_up.weight"]),
            ("lora_unet_", "_", [".lora_down.weight", ".lora_up.weight"]),
        ];
        for (prefix, dot, ends) in styles {
            let original = [
                ("joint_blocks.0.x_block.attn.qkv", a(1), &fused),
                ("joint_blocks.0.x_block.mlp.fc1", a(2), &up),
                ("final_layer.adaLN_modulation.1", a(3), &swapped),
            ];
            let tensors = original.into_iter().flat_map(|(name, a, b)| {
                let name = format!("{prefix}{}", name.replace('.', dot));
                [(format!("{name}{}", ends[0]), a), (format!("{name}{}", ends[1]), b.clone())]
            });
            let got = bank(tensors.collect()).unwrap();
            assert_eq!(got.layout(), want.layout());
            assert_eq!(got.numbers(Slot::Theta).host(), want.numbers(Slot::Theta).host(), "{prefix}");
        }
        let error = bank(vec![("lora_unet_proj_out.hada_w1_a".into(), a(1))]).err().unwrap().to_string();
        assert!(error.contains("is of LoHa, which is not supported"), "{error}");
    }

    #[test]
    fn what_peft_saved_without_its_settings_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::rename(write(dir.path(), &TO_Q, &BTreeMap::new()), dir.path().join(PEFT_FILE)).unwrap();
        let error = load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("there is no adapter_config.json beside it"), "{error}");
    }

    #[test]
    fn factors_go_to_the_component_that_their_prefix_names() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            TO_Q[0],
            TO_Q[1],
            "text_encoder_2.fc1.lora_linear_layer.down.weight",
            "text_encoder_2.fc1.lora_linear_layer.up.weight",
        ];
        let settings = json!({ "transformer.lora_alpha": 2, "text_encoder_2.lora_alpha": 8 });
        let file = LoraFile::open(&write(dir.path(), &names, &header(&settings))).unwrap();
        let fc1 = [Module { name: "fc1".into(), ..modules().remove(1) }];
        assert_eq!(file.bank(TRANSFORMER, &modules(), &Device::Cpu).unwrap().unwrap().scale(), 1.0);
        assert_eq!(file.bank("text_encoder_2", &fc1, &Device::Cpu).unwrap().unwrap().scale(), 4.0);
        assert!(file.bank("text_encoder", &fc1, &Device::Cpu).unwrap().is_none());
        let names = ["text_encoder_3.a.lora_A.weight"];
        assert!(
            LoraFile::open(&write(dir.path(), &names, &BTreeMap::new()))
                .err()
                .unwrap()
                .to_string()
                .contains("is for T5")
        );
    }

    #[test]
    fn settings_that_contradict_the_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (settings, want) in [
            (json!({ "transformer.r": 3 }), "'blocks.0.attn.to_q' has rank 2, its settings say 3"),
            (json!({ "transformer.use_dora": true }), "is a DoRA, which is not supported"),
            (json!({ "transformer.alpha_pattern": {"(?=up)": 4} }), "alpha_pattern '(?=up)' is not understood"),
            (json!({ "transformer.init_lora_weights": "pissa_niter_4" }), "init_lora_weights is 'pissa_niter_4'"),
            (json!({ "transformer.bias": "lora_only" }), "bias is 'lora_only'"),
            (json!({ "transformer.modules_to_save": ["proj_out"] }), "modules_to_save"),
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
                "is no layer of transformer that an adapter can be on; did you mean 'blocks.0.attn.to_q'?",
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
