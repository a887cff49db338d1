//! Whole models against what PyTorch, diffusers and transformers computed (`tools/oracle`).

mod autoencoder;
mod mmdit;
mod tokenizer;

use std::path::{Path, PathBuf};

use engine::device::Tensor;

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
