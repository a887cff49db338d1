//! Weights that are not what the config asks for.

use std::time::{Duration, Instant};

use engine::device::{DType, Device, Precision};
use engine::models::load_network;
use half::bf16;
use safetensors::Dtype;

use super::{Stored, check_line, serialized, stored};
use crate::parity::fixture;

const FILE: &str = "diffusion_pytorch_model.safetensors";
const BIAS: &str = "context_embedder.bias";

/// What loading the SD3 fixture says after `change`.
fn load_error(change: impl FnOnce(&mut Vec<Stored>)) -> String {
    let from = fixture("mmdit/sd3");
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = stored(&std::fs::read(from.join(FILE)).unwrap());
    change(&mut tensors);
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join(FILE), serialized(&tensors)).unwrap();
    let Err(error) = load_network(folder.path(), &Device::Cpu, None) else { panic!("it loads") };
    format!("{error:#}")
}

fn bias(tensors: &mut [Stored]) -> &mut Stored {
    tensors.iter_mut().find(|t| t.name == BIAS).unwrap()
}

#[test]
fn what_is_rounded_to_f16_must_be_in_its_range() {
    let from = fixture("mmdit/sd3");
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = stored(&std::fs::read(from.join(FILE)).unwrap());
    let weight = tensors.iter_mut().find(|t| t.name == "context_embedder.weight").unwrap();
    weight.bytes[4 * 7..][..4].copy_from_slice(&(-7e4f32).to_le_bytes());
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join(FILE), serialized(&tensors)).unwrap();
    load_network(folder.path(), &Device::Cpu, Precision::Half(DType::Bf16)).unwrap();
    let half = Precision::Half(DType::F16);
    let Err(error) = load_network(folder.path(), &Device::Cpu, half) else { panic!("it loads") };
    check_line(&format!("{error:#}"), &["'context_embedder.weight' holds -70000 at element 7, and f16 ends at 65504"]);
}

#[test]
fn a_wrong_shape_names_both_shapes() {
    let line = load_error(|tensors| {
        let t = bias(tensors);
        t.shape = vec![2, t.shape[0] / 2];
    });
    check_line(&line, &[BIAS, "has shape [2, 16], the config asks for [32]"]);
}

#[test]
fn a_wrong_dtype_names_those_that_are_right() {
    let line = load_error(|tensors| bias(tensors).dtype = Dtype::I32);
    check_line(&line, &[BIAS, "is I32, expected F32, F16 or BF16"]);
}

#[test]
fn a_misspelt_tensor_is_matched_with_the_one_that_is_missing() {
    let line = load_error(|tensors| bias(tensors).name = "context_embeder.bias".into());
    check_line(
        &line,
        &[
            "missing tensor 'context_embedder.bias' [32], the nearest in the file is 'context_embeder.bias'",
            "unexpected tensor 'context_embeder.bias', the nearest expected is 'context_embedder.bias'",
        ],
    );
}

#[test]
fn a_missing_and_an_unexpected_tensor_are_each_named() {
    check_line(&load_error(|tensors| tensors.retain(|t| t.name != BIAS)), &["missing tensor 'context_embedder.bias'"]);
    let line = load_error(|tensors| {
        let t = Stored { name: "context_embedder.biass".into(), ..bias(tensors).clone() };
        tensors.push(t);
    });
    check_line(&line, &["unexpected tensor 'context_embedder.biass', the nearest expected is 'context_embedder.bias'"]);
}

#[test]
fn a_value_that_is_not_finite_names_tensor_and_element_in_every_dtype() {
    let poison = |at: usize, v: f32| {
        move |tensors: &mut Vec<Stored>| bias(tensors).bytes[4 * at..][..4].copy_from_slice(&v.to_le_bytes())
    };
    check_line(&load_error(poison(5, f32::NAN)), &["tensor 'context_embedder.bias' holds NaN at element 5"]);
    check_line(&load_error(poison(31, f32::NEG_INFINITY)), &["'context_embedder.bias' holds -inf at element 31"]);
    let line = load_error(|tensors| {
        let t = bias(tensors);
        (t.dtype, t.bytes) = (Dtype::BF16, [bf16::ONE, bf16::INFINITY].map(bf16::to_le_bytes).concat().repeat(16));
    });
    check_line(&line, &["tensor 'context_embedder.bias' holds inf at element 1"]);
}

#[test]
fn a_file_of_another_model_is_refused_in_one_line_and_at_once() {
    let mut begin = None;
    let line = load_error(|tensors| {
        for t in tensors.iter_mut() {
            t.name = format!("model.diffusion_model.{}", t.name);
        }
        // As many names as a large model has.
        let spare: Vec<Stored> = (0..2000)
            .map(|i| Stored {
                name: format!("model.diffusion_model.joint_blocks.{i}.x_block.attn.qkv.weight"),
                ..tensors[0].clone()
            })
            .collect();
        tensors.extend(spare);
        begin = Some(Instant::now());
    });
    check_line(&line, &["missing tensor", "; and 2", "more"]);
    let took = begin.unwrap().elapsed();
    println!("{} characters in {took:?}: {line}", line.len());
    assert!(took < Duration::from_secs(1), "{took:?}");
}
