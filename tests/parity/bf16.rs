use std::path::Path;

use engine::device::{DType, Device, Precision, Tensor, Wide};
use engine::io::{TensorFile, read_json};
use engine::models::autoencoder::Autoencoder;
use engine::models::t5::T5;
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::autoencoder::{normalised, pixels_last};
use super::{bits, devices, fixture, ids, read, relative_error};

fn round(x: f32) -> bf16 {
    bf16::from_f32(x)
}

/// Copies the component in `from` with every weight rounded to bf16, stored as bf16 or widened again.
fn rounded(from: &Path, stem: &str, to: &Path, widened: bool) {
    let name = format!("{stem}.safetensors");
    let bytes = std::fs::read(from.join(&name)).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, t)| {
            let values = t.data().chunks_exact(4).map(|b| round(f32::from_le_bytes(b.try_into().unwrap())));
            let bytes = match widened {
                true => values.flat_map(|v| v.to_f32().to_le_bytes()).collect(),
                false => values.flat_map(bf16::to_le_bytes).collect(),
            };
            (name.to_string(), t.shape().to_vec(), bytes)
        })
        .collect();
    let dtype = if widened { Dtype::F32 } else { Dtype::BF16 };
    let views = tensors.iter().map(|(n, shape, b)| (n, TensorView::new(dtype, shape.clone(), b).unwrap()));
    std::fs::write(to.join(name), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

/// What `tools/oracle/bf16.py` found PyTorch's own errors to be.
pub fn errors() -> serde_json::Value {
    read_json(&fixture("bf16.json")).unwrap()
}

/// Our error with bf16 weights against f32 arithmetic on the same weights, and PyTorch's.
fn check(name: &str, stem: &str, run: impl Fn(&Path, &Device) -> Tensor) {
    let [stored, widened] = [false, true].map(|widened| {
        let folder = tempfile::tempdir().unwrap();
        rounded(&fixture(name), stem, folder.path(), widened);
        folder
    });
    let (want, theirs) = (run(widened.path(), &Device::Cpu), errors()[name].as_f64().unwrap());
    for device in devices() {
        let ours = relative_error(&run(stored.path(), &device), &want);
        println!("{name} in bf16 on {device:?}: ours {ours:.1e}, PyTorch {theirs:.1e}");
        assert!(ours <= 2.0 * theirs, "{device:?}: {ours:e} {theirs:e}");
    }
}

#[test]
fn t5_and_vae_with_bf16_weights_err_no_more_than_twice_as_much_as_bf16_pytorch() {
    let io = TensorFile::open(&fixture("t5/gated/io.safetensors")).unwrap();
    check("t5/gated", "model", |folder, device| T5::load(folder, device).unwrap().forward(&ids(&io, "input_ids")));
    let io = TensorFile::open(&fixture("autoencoder/vae16/io.safetensors")).unwrap();
    let latent = read(&io, "latent");
    let latent: Vec<f32> = latent.to_host().into_iter().map(|v| round(v).to_f32()).collect();
    let latent = Tensor::from_slice(&Device::Cpu, &latent, read(&io, "latent").shape());
    check("autoencoder/vae16", "diffusion_pytorch_model", |folder, device| {
        let model = Autoencoder::load(folder, device, None).unwrap();
        model.decode(&normalised(&model, &latent.to(device)))
    });
}

#[test]
fn a_vae_asked_for_a_precision_is_one_stored_in_it_and_in_bf16_its_latents_err_no_more_than_decoded_images_may() {
    let (name, theirs) = ("autoencoder/vae16", errors()["autoencoder/vae16"].as_f64().unwrap());
    let [stored, widened] = [false, true].map(|widened| {
        let folder = tempfile::tempdir().unwrap();
        rounded(&fixture(name), "diffusion_pytorch_model", folder.path(), widened);
        folder
    });
    let io = TensorFile::open(&fixture("autoencoder/vae16/io.safetensors")).unwrap();
    let (latent, image) = (read(&io, "latent"), pixels_last(&read(&io, "image")));
    let run = |folder: &Path, device: &Device, precision| {
        let model = Autoencoder::load(folder, device, precision).unwrap();
        let decoded = model.decode(&normalised(&model, &latent.to(device)));
        let moments = model.encode(&image.to(device));
        [decoded, moments.mean, moments.logvar]
    };
    let single = run(widened.path(), &Device::Cpu, Precision::Stored);
    for device in devices() {
        let on = |folder: &tempfile::TempDir, precision| run(folder.path(), &device, precision);
        let asked = on(&widened, Precision::Half(DType::Bf16));
        assert!(asked.iter().all(|t| t.dtype() == DType::F32));
        assert!(asked.each_ref().map(bits) == on(&stored, Precision::Stored).each_ref().map(bits), "{device:?}");
        let wide = on(&stored, Precision::Wide(Wide::F32));
        assert!(wide.each_ref().map(bits) == on(&widened, Precision::Stored).each_ref().map(bits), "{device:?} in f32");
        // An encoder is as deep as its decoder.
        let off = [1, 2].map(|i| relative_error(&asked[i], &single[i]));
        println!("encoded in bf16 on {device:?}: mean and logvar off by {off:?}, PyTorch decodes with {theirs:.1e}");
        assert!(off.iter().all(|off| *off <= 2.0 * theirs), "{device:?}: {off:?}");
    }
}
