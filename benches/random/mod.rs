//! Random models at real sizes, written in half precision as the published ones are.

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A folder with `config.json` and a `model.safetensors` holding `tensors` (name, shape).
pub fn folder(config: &str, tensors: &[(String, Vec<usize>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("config.json"), config).expect("config.json");
    let largest = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    // Small enough to stay in range through all layers; the values do not change the time.
    let values: Vec<f16> = (0..largest).map(|i| f16::from_f32((i % 251) as f32 * 2e-5 - 2.5e-3)).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = bytemuck::cast_slice(&values[..shape.iter().product()]);
        (name.clone(), TensorView::new(Dtype::F16, shape.clone(), bytes).expect("shape and bytes agree"))
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).expect("model.safetensors");
    dir
}
