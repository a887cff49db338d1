//! Whole runs on the kernels for Hopper, interpreted: a model whose layers they take, in bf16.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::device::gpu::vm::{Counts, Vm};
use engine::device::gpu::{Gpu, HOPPER, PORTABLE};
use engine::device::{DType, Device, Tensor};
use engine::models::load_network;
use engine::models::lora::{AdapterBank, Adapters, Layout, Rows, Slot, Trained};
use engine::models::network::{Checkpointing, Condition};
use engine::ops::affine::{self, Affine};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::vm::{epochs, state};
use super::{assert_success, checkpoint_bytes, copy, engine, train, write_config};
use crate::parity::{fixture, random, rms_error};

/// The pipeline of the fixtures with a transformer of random weights that is four times as wide: two heads of 64.
fn model(folder: &Path) -> PathBuf {
    let (from, to) = (fixture("pipeline/no_t5"), folder.join("model"));
    copy(&from, &to);
    let config = std::fs::read_to_string(from.join("transformer/config.json")).unwrap();
    let wider = config
        .replace(r#""attention_head_dim": 16"#, r#""attention_head_dim": 64"#)
        .replace(r#""caption_projection_dim": 32"#, r#""caption_projection_dim": 128"#);
    assert_ne!(config, wider);
    std::fs::write(to.join("transformer/config.json"), wider).unwrap();

    let weights = "transformer/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(from.join(weights)).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .enumerate()
        .map(|(seed, (name, t))| {
            let shape = wider_shape(name, t.shape());
            let noise = random(&shape, seed as u64).to_host();
            let inputs = shape[1..].iter().product::<usize>().max(1) as f32;
            let is_norm = name.contains("norm_") && shape.len() == 1;
            let number = |v: f32| if is_norm { 1.0 + 0.1 * v } else { v / inputs.sqrt() };
            let bytes = noise.into_iter().flat_map(|v| number(v).to_le_bytes()).collect();
            (name.to_string(), shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    std::fs::write(to.join(weights), safetensors::serialize(views, None).unwrap()).unwrap();
    to
}

/// The shape of a tensor when the hidden width is 128 instead of 32.
fn wider_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    let is_hidden = |axis: usize| match name {
        "pos_embed.pos_embed" => axis == 2,
        "proj_out.weight" => axis == 1,
        "proj_out.bias" => false,
        _ if name.starts_with("pos_embed.proj.") => axis == 0,
        "context_embedder.weight"
        | "time_text_embed.text_embedder.linear_1.weight"
        | "time_text_embed.timestep_embedder.linear_1.weight" => axis == 0,
        _ => true,
    };
    shape.iter().enumerate().map(|(axis, n)| if is_hidden(axis) { 4 * n } else { *n }).collect()
}

/// A Hopper, interpreted, and what its kernels were launched with.
fn hopper() -> (Device, Counts) {
    let vm = Vm::new(HOPPER, ptxvm::Options::default());
    let counts = vm.counts();
    (Device::Gpu(Gpu::new(Box::new(vm)).unwrap()), counts)
}

/// The velocity of four samples, of which two go through the trained adapter and one through the old one, and the gradients.
fn pass(transformer: &Path, device: &Device, compute: Option<DType>) -> [Tensor; 2] {
    let network = load_network(transformer, device, compute).unwrap();
    let (modules, sizes) = (network.modules(), network.sizes());
    let layout = Arc::new(Layout::new(modules, modules.iter().map(|m| m.trainable.then_some(2))));
    let mut bank = AdapterBank::new(layout.clone(), 0.5);
    for (slot, seed) in [(Slot::Theta, 1), (Slot::Old, 2)] {
        let numbers = affine::forward(&random(&[layout.len()], seed), Affine { scale: 0.1, ..Affine::default() });
        bank.set(slot, numbers.to(device));
    }
    let [latent, dv] = [1, 2].map(|seed| random(&[4, sizes.channels, 8, 12], seed).to(device));
    let (prompt_embeds, pooled) = (random(&[4, 5, sizes.text], 3).to(device), random(&[4, sizes.pooled], 4).to(device));
    let timestep = [50.0, 250.0, 600.0, 900.0];
    let condition = Condition { timestep: &timestep, prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled };
    let rows = Rows::runs([(Some(Slot::Theta), 2), (Some(Slot::Old), 1), (None, 1)]);
    let adapters = Adapters { bank: Some(&bank), rows: &rows };
    let (velocity, saved) = network.forward_saved(&latent, condition, &adapters, Checkpointing::None);
    let mut grads = Tensor::zeros(device, &[layout.len()]);
    let mut trained = Trained { bank: &bank, slot: Slot::Theta, grads: &mut grads };
    network.backward(&dv.slice(0..2), saved, &mut trained, false);
    device.check().unwrap();
    [velocity, grads].map(|t| t.to(&Device::Cpu))
}

#[test]
fn on_hopper_all_products_of_a_transformer_in_bf16_are_those_for_hopper_and_as_exact_as_the_portable_ones() {
    let dir = tempfile::tempdir().unwrap();
    let transformer = model(dir.path()).join("transformer");
    let (device, counts) = hopper();
    let portable = Device::vm_of(PORTABLE, ptxvm::Options::default()).unwrap();
    let exact = pass(&transformer, &Device::Cpu, None);
    let [on_hopper, on_others] = [&device, &portable].map(|d| pass(&transformer, d, Some(DType::Bf16)));
    for (name, i) in [("velocity", 0), ("gradients", 1)] {
        let [ours, others] = [&on_hopper, &on_others].map(|got| rms_error(&got[i], &exact[i]));
        println!("{name}: {ours:.1e} on Hopper, {others:.1e} elsewhere");
        assert!(ours <= 1.5 * others, "{name}: {ours:e} on Hopper, {others:e} elsewhere");
    }
    let counts = counts.lock().unwrap();
    let names: Vec<_> = counts.keys().map(String::as_str).collect();
    for kind in ["linear_wgmma", "attention_wgmma"] {
        assert!(names.iter().any(|n| n.starts_with(kind)), "{kind} in {names:?}");
    }
    let others = ["linear_nt_bf16", "linear_nn_bf16", "linear_tn_bf16", "attention_mma", "attention_backward_f32"];
    let portable: Vec<_> = names.iter().filter(|n| others.iter().any(|o| n.starts_with(o))).collect();
    assert!(portable.is_empty(), "{portable:?}");
}

#[test]
fn a_run_in_bf16_on_hopper_trains_on_what_it_rolled_out_whatever_the_batches_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "");
    let model = format!("model={}", model(dir.path()).display());
    let run = |name: &str, more: &[&str]| {
        let run = dir.path().join(name);
        let args = ["--device", "vm", "--set", &model, "--set", "train.compute=bf16"];
        assert_success(&train(&config, &run, &[&args[..], more].concat()));
        run
    };
    let whole = run("whole", &["--set", "num_epochs=2"]);
    assert!(epochs(&whole).iter().all(|e| e["rollout_train_deviation"] == 0.0));
    assert_eq!(epochs(&whole).len(), 2);
    run("parts", &["--set", "num_epochs=1"]);
    let parts = run("parts", &["--set", "num_epochs=2"]);
    assert_eq!(checkpoint_bytes(&whole, 2), checkpoint_bytes(&parts, 2));
    let other = run("other", &["--set", "num_epochs=1", "--set", "rollout.batch_size=1"]);
    assert!(state(&other, 1) == state(&whole, 1), "rollout batch");
    let again = ["--set", "num_epochs=1", "--set", "train.activation_checkpointing=selective"];
    assert!(state(&run("again", &again), 1) == state(&whole, 1), "selective checkpointing");
}

#[test]
fn a_sample_on_hopper_is_the_cpu_s_but_for_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let sample = |device: &str| {
        let out = dir.path().join(device);
        let args = ["sample", "--model", model.to_str().unwrap(), "--prompt", "the sun", "--device", device];
        let size = ["--size", "32x32", "--steps", "2", "--out", out.to_str().unwrap()];
        assert_success(&engine(&[&args[..], &size].concat()));
        let file =
            std::fs::read_dir(out).unwrap().map(|f| f.unwrap().path()).find(|p| p.extension() == Some("png".as_ref()));
        image::open(file.unwrap()).unwrap().to_rgb8().into_raw()
    };
    let (vm, cpu) = (sample("vm"), sample("cpu"));
    let apart = vm.iter().zip(&cpu).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart <= Some(1), "{apart:?} steps of 255");
}
