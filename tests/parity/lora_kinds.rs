use engine::device::{Device, Tensor};
use engine::io::{TensorFile, read_json};
use engine::models::load_network;
use engine::models::lora::file::{LoraFile, TRANSFORMER};
use engine::models::lora::{Adapters, Rows, Slot};
use engine::models::network::Condition;
use engine::models::source::Model;
use engine::models::text::TextEncoders;

use super::{devices, fixture, read, relative_error};

/// What is allowed for a forward in single precision without a LoRA, which the factors' rounding does not change.
const ERROR: f64 = 1e-5;

#[test]
fn every_kind_of_lora_gives_what_diffusers_and_peft_give() {
    devices().iter().for_each(check);
}

fn check(device: &Device) {
    let (folder, model) = (fixture("lora_kinds"), fixture("pipeline/no_t5"));
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let settings: serde_json::Value = read_json(&model.join("io.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_value(settings["prompts"].clone()).unwrap();
    let network = load_network(&model.join("transformer"), device, None).unwrap();
    let [x, timestep, text, pooled] =
        ["x", "timestep", "prompt_embeds", "pooled_prompt_embeds"].map(|n| read(&io, n).to(device));
    let timestep = timestep.to_host();
    let condition = Condition { timestep: &timestep, prompt_embeds: &text, pooled_prompt_embeds: &pooled };
    let mut wrong = Vec::new();
    let mut compare = |kind: &str, what: &str, got: &Tensor| {
        let name = |kind: &str| format!("{kind}.{what}");
        let (want, base) = (read(&io, &name(kind)), read(&io, &name("base")));
        let (error, effect) = (relative_error(got, &want), relative_error(&base, &want));
        println!("lora {kind} {what} on {device:?}: {error:.1e} of {effect:.1e}");
        assert!(effect > 1000.0 * ERROR, "{kind} {what}: hardly differs from the model without a LoRA");
        if error > ERROR {
            wrong.push(format!("{kind} {what} on {device:?}: {error:.1e}"));
        }
    };
    for path in [
        "diffusers",
        "no_settings_f16",
        "rslora_bf16",
        "peft_folder",
        "alphas_f64.safetensors",
        "sd_scripts_f16.safetensors",
        "comfy_bf16.safetensors",
        "comfy_old_f32.safetensors",
    ] {
        let kind = path.split('.').next().unwrap();
        let lora = LoraFile::open(&folder.join(path)).unwrap();
        let bank = lora.bank(TRANSFORMER, network.modules(), device).unwrap().unwrap();
        let rows = Rows::all(Some(Slot::Theta), 2);
        compare(kind, "velocity", &network.forward(&x, condition, &Adapters { bank: Some(&bank), rows: &rows }));
        let has_encoders = io.entry(&format!("{kind}.prompt_embeds")).is_some();
        assert_eq!(has_encoders, ["text_encoder", "text_encoder_2"].iter().any(|c| lora.has(c)), "{kind}");
        if has_encoders {
            let mut encoders = TextEncoders::load(&Model::in_folder(&model).unwrap(), device).unwrap();
            encoders.merge(&lora).unwrap();
            let embeds = encoders.encode(&prompts, 1).unwrap();
            compare(kind, "prompt_embeds", &embeds.prompt_embeds);
            compare(kind, "pooled_prompt_embeds", &embeds.pooled_prompt_embeds);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}
