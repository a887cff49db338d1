//! Whole models against what PyTorch, diffusers and transformers computed (`tools/oracle`).

mod adamw;
mod autoencoder;
mod bf16;
mod clip;
mod deqa;
mod half_prompts;
mod imagereward;
mod lora;
mod lora_kinds;
pub mod mask2former;
mod mmdit;
mod ocr;
mod pictures;
mod pipeline;
pub mod single_file;
mod t5;
mod text;
mod tokenizer;

use std::path::{Path, PathBuf};

use engine::device::gpu::PORTABLE;
use engine::device::philox::{Key, Purpose};
use engine::device::{Device, Tensor};
use engine::io::{TensorFile, safetensors};
use engine::ops::noise;

/// The path of `name` under `tests/fixtures`. From then on fresh tensors hold NaN in this process, so that a number which is
/// read before it is written is seen in what is compared.
pub fn fixture(name: impl AsRef<Path>) -> PathBuf {
    engine::device::poison_scratch();
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The CPU, a GPU, interpreted or the one that `ENGINE_TEST_DEVICE` names as `--device` does, and one that has only the portable
/// kernels.
pub fn devices() -> [Device; 3] {
    let gpu = match std::env::var("ENGINE_TEST_DEVICE") {
        Ok(name) => Device::cuda(name.strip_prefix("cuda:").unwrap_or("0").parse().expect("cuda:N")).unwrap(),
        Err(_) => Device::vm(ptxvm::Options::default()).unwrap(),
    };
    [Device::Cpu, gpu, Device::vm_of(PORTABLE, ptxvm::Options::default()).unwrap()]
}

/// Tensor `name` of `file`.
pub fn read(file: &TensorFile, name: &str) -> Tensor {
    file.tensor(name, &Device::Cpu).unwrap()
}

/// Number `i` of those that follow from a name (`tools/oracle/common.py`): the finaliser of MurmurHash3 over a Weyl sequence
/// that begins at the name's checksum.
pub fn hashed(name: &str, i: usize) -> u32 {
    let mut x = (i as u32).wrapping_mul(0x9E37_79B1).wrapping_add(crc32fast::hash(name.as_bytes()));
    x = (x ^ x >> 16).wrapping_mul(0x85EB_CA6B);
    x = (x ^ x >> 13).wrapping_mul(0xC2B2_AE35);
    x ^ x >> 16
}

/// A tensor whose numbers follow from its name: those of `tools/oracle/common.py`'s `uniform`, times `scale`, plus `mean`.
#[derive(serde::Deserialize)]
pub struct Listed {
    pub name: String,
    shape: Vec<usize>,
    scale: f32,
    mean: f32,
}

/// Writes `tensors` to a safetensors file.
pub fn write_listed(path: &Path, tensors: impl Iterator<Item = Listed>) {
    let tensor = |Listed { name, shape, scale, mean }: Listed| {
        let number = |i| ((hashed(&name, i) >> 8) as f32 * 2f32.powi(-23) - 1.0) * scale + mean;
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        (name, Tensor::from_slice(&Device::Cpu, &numbers, &shape))
    };
    safetensors::save(path, tensors.map(tensor), &Default::default()).unwrap();
}

/// A tensor of standard normal numbers.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let key = Key::new(seed, Purpose::ForwardNoise);
    noise::normal(&Device::Cpu, &[key], &[1, shape.iter().product()]).reshape(shape)
}

/// The elements' bits.
pub fn bits(t: &Tensor) -> Vec<u8> {
    t.to_raw()
}

/// Largest difference relative to the largest reference value.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.to_host(), want.to_host());
    let largest = want.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(f64::from(v.abs())));
    assert!(got.iter().all(|v| v.is_finite()), "a value is not finite");
    let errors = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    errors.fold(0.0, f64::max) / largest
}

/// Root mean square of the differences relative to that of the reference.
pub fn rms_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.len(), want.len());
    let (got, want) = (got.to_host(), want.to_host());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let apart = squares(&mut got.iter().zip(&want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    (apart / squares(&mut want.iter().map(|w| f64::from(*w)))).sqrt()
}

/// The i64 matrix `name` of `file` as rows of token ids.
pub fn ids(file: &TensorFile, name: &str) -> Vec<Vec<u32>> {
    let entry = file.entry(name).expect("the oracle wrote it");
    let ids: Vec<i64> = entry.raw().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    ids.chunks_exact(entry.shape()[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}
