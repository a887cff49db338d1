//! A LoRA and the settings that PEFT keeps beside it, for the layers of a small transformer.
#![no_main]

use std::sync::LazyLock;

use engine::device::Device;
use engine::models::load_network;
use engine::models::lora::file::LoraFile;
use engine::models::lora::{Module, Slot};
use engine_fuzz::{check, choice, fixture, folder, write_files};
use libfuzzer_sys::fuzz_target;

/// Under its own name PEFT's file needs the settings; under the other they are in its header.
const FILES: [[&str; 2]; 2] =
    [["pytorch_lora_weights.safetensors", "adapter_config.json"], ["adapter_model.safetensors", "adapter_config.json"]];

static MODULES: LazyLock<Vec<Module>> = LazyLock::new(|| {
    let folder = fixture("pipeline/no_t5/transformer");
    load_network(&folder, &Device::Cpu, None).expect("a fixture").modules().to_vec()
});

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 2) else { return };
    let folder = folder().join(which.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    write_files(&folder, &FILES[which], data);
    let Some(file) = check(LoraFile::open(&folder)) else { return };
    for component in ["transformer", "text_encoder", "text_encoder_2"] {
        if let Some(Some(bank)) = check(file.bank(component, &MODULES, &Device::Cpu)) {
            assert!(file.has(component) && bank.scale().is_finite());
            let numbers = bank.numbers(Slot::Theta).to_host();
            assert!(numbers.iter().all(|v| v.is_finite()), "a factor that is not finite");
        }
    }
});
