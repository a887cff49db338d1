//! Whole models against what PyTorch, diffusers and transformers computed (`tools/oracle`).

mod adamw;
mod autoencoder;
mod bf16;
mod clip;
mod lora;
mod mmdit;
mod pipeline;
mod t5;
mod text;
mod tokenizer;

use std::path::{Path, PathBuf};

use engine::device::Tensor;
use engine::io::TensorFile;

/// The path of `name` under `tests/fixtures`.
pub fn fixture(name: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Largest difference relative to the largest reference value.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let largest = want.data().iter().fold(f64::MIN_POSITIVE, |m, v| m.max(f64::from(v.abs())));
    assert!(got.data().iter().all(|v| v.is_finite()), "a value is not finite");
    let errors = got.data().iter().zip(want.data()).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    errors.fold(0.0, f64::max) / largest
}

/// The i64 matrix `name` of `file` as rows of token ids.
pub fn ids(file: &TensorFile, name: &str) -> Vec<Vec<u32>> {
    let entry = file.entry(name).expect("the oracle wrote it");
    let ids: Vec<i64> = entry.raw().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    ids.chunks_exact(entry.shape()[1]).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}
