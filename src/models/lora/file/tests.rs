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
const BOTH: [&str; 4] =
    [TO_Q[0], TO_Q[1], "transformer.blocks.0.ff.net.2.lora_A.weight", "transformer.blocks.0.ff.net.2.lora_B.weight"];

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
    let [q, k, v, up, norm] = [(6, 11), (6, 12), (6, 13), (24, 14), (12, 15)].map(|(n, seed)| random(&[n, 2], seed));
    let named = |layer: String, a: Tensor, b: &Tensor| {
        [(format!("transformer.{layer}.lora_A.weight"), a), (format!("transformer.{layer}.lora_B.weight"), b.clone())]
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
        LoraFile::open(&write(dir.path(), &names, &BTreeMap::new())).err().unwrap().to_string().contains("is for T5")
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
