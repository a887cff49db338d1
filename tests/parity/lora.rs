use std::path::Path;
use std::sync::Arc;

use engine::device::{Device, Tensor};
use engine::io::safetensors;
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, file, select};
use engine::models::network::Condition;
use engine::ops::affine::{self, Affine};

use super::{bits, fixture, random};

/// Attention and MLP layers of both streams, and the second attention.
const TARGETS: [&str; 10] = [
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.to_add_out",
    "attn2.to_k",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
];

/// Leaves its files in `target/tmp/lora_roundtrip`, where `tools/oracle/lora_roundtrip.py` looks at them with diffusers.
#[test]
fn a_lora_written_here_is_read_back_bit_for_bit_and_gives_the_same_file_again() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lora_roundtrip");
    let network = load_network(&fixture("pipeline/no_t5/transformer"), &Device::Cpu, None).unwrap();
    let (modules, targets) = (network.modules(), TARGETS.map(String::from));
    // A scale that no binary fraction holds.
    let (rank, alpha) = (3, 2.0);
    let layout = Arc::new(Layout::selected(modules, &select(modules, &targets).unwrap(), rank));
    let mut bank = AdapterBank::new(layout.clone(), alpha / rank as f32);
    let numbers = affine::forward(&random(&[layout.len()], 1), Affine { scale: 0.3, ..Affine::default() });
    bank.set(Slot::Average, numbers);
    let write = || {
        file::save(&folder, &bank, Slot::Average, modules, rank, alpha, &targets).unwrap();
        std::fs::read(folder.join(file::FILE)).unwrap()
    };
    let bytes = write();
    assert!((0..5).all(|_| write() == bytes));
    let again = file::load(&folder, modules, &Device::Cpu).unwrap();
    assert_eq!((again.scale(), again.layout()), (bank.scale(), bank.layout()));
    assert!(bits(again.numbers(Slot::Theta)) == bits(bank.numbers(Slot::Average)));

    let sizes = network.sizes();
    let (latent, timestep) = (random(&[2, sizes.channels, 8, 12], 100), [250.0, 800.0]);
    let (prompt_embeds, pooled) = (random(&[2, 5, sizes.text], 101), random(&[2, sizes.pooled], 102));
    let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    let [velocity, base] = [Some(Slot::Theta), None]
        .map(|slot| network.forward(&latent, condition, &Adapters { bank: Some(&again), rows: &Rows::all(slot, 2) }));
    assert!(bits(&velocity) != bits(&base));
    let io = [
        ("latent", latent),
        ("timestep", Tensor::from_slice(&Device::Cpu, &timestep, &[2])),
        ("prompt_embeds", prompt_embeds),
        ("pooled_prompt_embeds", pooled),
        ("velocity", velocity),
        ("base_velocity", base),
    ];
    let named = io.map(|(name, t)| (name.to_string(), t));
    safetensors::save(&folder.join("io.safetensors"), named, &Default::default()).unwrap();
}
