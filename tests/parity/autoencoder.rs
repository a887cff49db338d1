use engine::device::{Device, Tensor, with_threads};
use engine::io::TensorFile;
use engine::models::autoencoder::Autoencoder;
use engine::ops::affine::{self, Affine};
use engine::ops::copy;
use engine::ops::patchify::{self, Order, Patches};

use super::{bits, devices, fixture, read, relative_error};

fn case(name: &str, device: &Device) -> (Autoencoder, impl Fn(&str) -> Tensor) {
    let folder = fixture("autoencoder").join(name);
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    let to = device.clone();
    (Autoencoder::load(&folder, device, None).unwrap(), move |tensor: &str| read(&io, tensor).to(&to))
}

/// A latent on the autoencoder's own scale, as the oracle decodes it, on the scale of a diffusion model.
pub fn normalised(model: &Autoencoder, latent: &Tensor) -> Tensor {
    let c = model.config();
    affine::forward(
        latent,
        Affine { before: -c.shift_factor.unwrap_or(0.0), scale: c.scaling_factor, ..Affine::default() },
    )
}

/// `[b, c, h, w]`, as the oracle has images, to `[b, h, w, c]`.
pub fn pixels_last(image: &Tensor) -> Tensor {
    let pixels = patchify::forward(image, &Patches::pixels(image), Order::ChannelLast);
    pixels.reshape(&[image.dim(0), image.dim(2), image.dim(3), image.dim(1)])
}

#[test]
fn decoded_images_match_diffusers() {
    for (name, device) in ["vae16", "vae4"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let (model, io) = case(name, &device);
        let error = relative_error(&model.decode(&normalised(&model, &io("latent"))), &pixels_last(&io("decoded")));
        println!("{name} on {device:?}: decode off by {error:e}");
        assert!(error <= 1e-5, "{name} on {device:?}: {error:e}");
    }
}

/// The gradient to a latent on the scale of the diffusion model, if `ddecoded` is that to its picture.
fn latent_gradient(model: &Autoencoder, latent: &Tensor, ddecoded: &Tensor) -> Tensor {
    model.gradient(latent, |images, _| Ok(ddecoded.slice(images))).unwrap()
}

#[test]
fn the_gradient_to_a_latent_is_that_of_torch() {
    for (name, device) in ["vae16", "vae4"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let (model, io) = case(name, &device);
        let (latent, ddecoded) = (normalised(&model, &io("latent")), pixels_last(&io("ddecoded")));
        let gradient = latent_gradient(&model, &latent, &ddecoded);
        // The oracle's latent is that on the autoencoder's own scale.
        let map = Affine { scale: 1.0 / model.config().scaling_factor, ..Affine::default() };
        let error = relative_error(&gradient, &affine::forward(&io("dlatent"), map));
        println!("{name} on {device:?}: gradient off by {error:e}");
        assert!(error <= 1e-5, "{name} on {device:?}: {error:e}");
    }
}

#[test]
fn a_latent_has_the_same_gradient_alone_in_a_batch_and_for_any_number_of_threads() {
    let (model, io) = case("vae16", &Device::Cpu);
    let (latent, ddecoded) = (io("latent"), pixels_last(&io("ddecoded")));
    let whole = with_threads(2, || latent_gradient(&model, &latent, &ddecoded)).unwrap();
    for i in 0..2 {
        let of = |t: &Tensor| t.slice(i..i + 1);
        let alone = with_threads(1, || latent_gradient(&model, &of(&latent), &of(&ddecoded))).unwrap();
        assert!(bits(&of(&whole)) == bits(&alone));
    }
}

#[test]
fn encoded_distributions_match_diffusers() {
    for (name, device) in ["vae16", "vae4"].into_iter().flat_map(|name| devices().map(|d| (name, d))) {
        let (model, io) = case(name, &device);
        let posterior = model.encode(&pixels_last(&io("image")));
        let mean = relative_error(&posterior.mean, &io("moments_mean"));
        let logvar = relative_error(&posterior.logvar, &io("moments_logvar"));
        println!("{name} on {device:?}: mean off by {mean:e}, logvar by {logvar:e}");
        assert!(mean <= 1e-5 && logvar <= 1e-5, "{name} on {device:?}: {mean:e} {logvar:e}");
    }
}

#[test]
fn an_image_decodes_to_the_same_bits_alone_in_a_batch_and_for_any_number_of_threads() {
    let (model, io) = case("vae16", &Device::Cpu);
    let latent = io("latent");
    let batch = copy::concat(&[&latent, &latent, &latent]);
    let whole = with_threads(2, || model.decode(&batch)).unwrap();
    for i in 0..6 {
        let alone = with_threads(1, || model.decode(&latent.slice(i % 2..i % 2 + 1))).unwrap();
        assert!(bits(&whole.slice(i..i + 1)) == bits(&alone));
    }
}

#[test]
fn a_config_that_cannot_be_is_refused_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read_to_string(fixture("autoencoder/vae16/config.json")).unwrap();
    let refusal = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        std::fs::write(folder.path().join("config.json"), good.replace(from, to)).unwrap();
        let error = Autoencoder::load(folder.path(), &Device::Cpu, None).err().expect("must be refused");
        format!("{error:#}")
    };
    let cases = [
        ("\"scaling_factor\"", "\"other\"", "scaling_factor"),
        ("\"norm_num_groups\": 4", "\"norm_num_groups\": 3", "norm_num_groups"),
        ("\"latent_channels\": 16", "\"latent_channels\": 0", "latent_channels"),
        ("\"act_fn\": \"silu\"", "\"act_fn\": \"relu\"", "act_fn"),
        ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "up_block_types"),
    ];
    for (from, to, key) in cases {
        let message = refusal(from, to);
        assert!(message.contains("config.json") && message.contains(key), "{message}");
    }
}
