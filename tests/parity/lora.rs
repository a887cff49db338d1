use std::path::Path;
use std::sync::Arc;

use engine::device::{Device, Tensor};
use engine::io::safetensors;
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, file, merge, select};
use engine::models::network::{Condition, Network};
use engine::ops::affine::{self, Affine};

use super::{bits, devices, fixture, random, relative_error};

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

#[test]
fn an_adapter_on_every_linear_layer_gives_what_the_merged_weights_give() {
    let dir = tempfile::tempdir().unwrap();
    let (model, merged) = (fixture("pipeline/no_t5"), dir.path().join("merged"));
    let load = |folder: &Path, device: &Device| load_network(&folder.join("transformer"), device, None).unwrap();
    let network = load(&model, &Device::Cpu);
    let (modules, sizes) = (network.modules(), network.sizes());
    let outer = ["context_embedder", "norm_out.linear", "proj_out", "norm1.linear", "text_embedder.linear_2"];
    assert!(outer.iter().all(|name| modules.iter().any(|m| m.name.ends_with(name) && !m.trainable)));
    let layout = Arc::new(Layout::new(modules, modules.iter().map(|_| Some(2))));
    let mut bank = AdapterBank::new(layout.clone(), 0.5);
    bank.set(Slot::Theta, affine::forward(&random(&[layout.len()], 1), Affine { scale: 0.2, ..Affine::default() }));
    merge::pipeline(&engine::models::source::Model::in_folder(&model).unwrap(), modules, &bank, Slot::Theta, &merged)
        .unwrap();

    let (latent, timestep) = (random(&[2, sizes.channels, 8, 12], 100), [250.0, 800.0]);
    let (prompt_embeds, pooled) = (random(&[2, 5, sizes.text], 101), random(&[2, sizes.pooled], 102));
    let velocity = |network: &dyn Network, bank: Option<&AdapterBank>| {
        let [latent, prompt_embeds, pooled] = [&latent, &prompt_embeds, &pooled].map(|t| t.to(network.device()));
        let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
        let rows = Rows::all(bank.map(|_| Slot::Theta), 2);
        network.forward(&latent, condition, &Adapters { bank, rows: &rows })
    };
    let want = velocity(&*load(&merged, &Device::Cpu), None);
    for device in devices() {
        let network = load(&model, &device);
        let mut on_device = AdapterBank::new(layout.clone(), bank.scale());
        on_device.set(Slot::Theta, bank.numbers(Slot::Theta).to(&device));
        let adapted = velocity(&*network, Some(&on_device));
        let (error, change) = (relative_error(&adapted, &want), relative_error(&velocity(&*network, None), &want));
        assert!(error < 1e-5 && change > 1e-2, "{device:?}: {error:e}, without the adapter {change:e}");
    }
}
