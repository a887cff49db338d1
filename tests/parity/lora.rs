use std::path::Path;

use engine::device::Tensor;
use engine::device::philox::{Key, Purpose};
use engine::io::{lora, safetensors};
use engine::models::lora::{Adapter, select};
use engine::models::mmdit::{Condition, Mmdit};

use super::fixture;

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

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut t = Tensor::scratch(shape);
    Key::new(seed, Purpose::ForwardNoise).normal(t.data_mut());
    t
}

/// Leaves its files in `target/tmp/lora_roundtrip`, where `tools/oracle/lora_roundtrip.py` looks at them with diffusers.
#[test]
fn a_lora_written_here_is_read_back_bit_for_bit_and_gives_the_same_file_again() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lora_roundtrip");
    let model = Mmdit::load(&fixture("pipeline/no_t5/transformer")).unwrap();
    let targets = TARGETS.map(String::from);
    // A scale that no binary fraction holds.
    let (rank, alpha) = (3, 2.0);
    let chosen = select(model.modules(), &targets).unwrap();
    let mut adapter = Adapter::init(model.modules(), &chosen, rank, alpha, 1);
    for (i, t) in adapter.tensors_mut().enumerate() {
        *t = random(t.shape(), i as u64);
        t.data_mut().iter_mut().for_each(|v| *v *= 0.3);
    }
    let write = || {
        lora::save(&folder, &adapter, model.modules(), rank, alpha, &targets).unwrap();
        std::fs::read(folder.join(lora::FILE)).unwrap()
    };
    let bytes = write();
    assert!((0..5).all(|_| write() == bytes));
    let again = lora::load(&folder, model.modules()).unwrap();
    assert_eq!((again.scale, again.placement()), (adapter.scale, adapter.placement()));
    assert!(again.tensors().zip(adapter.tensors()).all(|(a, b)| a.data() == b.data()));

    let c = &model.config;
    let (latent, timestep) = (random(&[2, c.in_channels, 8, 12], 100), [250.0, 800.0]);
    let prompt_embeds = random(&[2, 5, c.joint_attention_dim], 101);
    let pooled = random(&[2, c.pooled_projection_dim], 102);
    let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    let velocity = model.forward(&latent, condition, Some(&again));
    let base = model.forward(&latent, condition, None);
    assert_ne!(velocity.data(), base.data());
    let timestep = Tensor::from_slice(&timestep, &[2]);
    let io = [
        ("latent", &latent),
        ("timestep", &timestep),
        ("prompt_embeds", &prompt_embeds),
        ("pooled_prompt_embeds", &pooled),
        ("velocity", &velocity),
        ("base_velocity", &base),
    ];
    safetensors::save(&folder.join("io.safetensors"), io.map(|(k, t)| (k.to_string(), t)), &Default::default())
        .unwrap();
}
