use engine::device::{Tensor, with_threads};
use engine::io::TensorFile;
use engine::models::autoencoder::Autoencoder;

use super::{fixture, relative_error};

fn case(name: &str) -> (Autoencoder, impl Fn(&str) -> Tensor) {
    let folder = fixture("autoencoder").join(name);
    let io = TensorFile::open(&folder.join("io.safetensors")).unwrap();
    (Autoencoder::load(&folder).unwrap(), move |tensor: &str| io.tensor(tensor).unwrap())
}

#[test]
fn decoded_images_match_diffusers() {
    for name in ["vae16", "vae4"] {
        let (model, io) = case(name);
        let error = relative_error(&model.decode(&io("latent")), &io("decoded"));
        println!("{name}: decode off by {error:e}");
        assert!(error <= 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn encoded_moments_match_diffusers() {
    for name in ["vae16", "vae4"] {
        let (model, io) = case(name);
        let moments = model.encode(&io("image"));
        let mean = relative_error(&moments.mean, &io("moments_mean"));
        let logvar = relative_error(&moments.logvar, &io("moments_logvar"));
        println!("{name}: mean off by {mean:e}, logvar by {logvar:e}");
        assert!(mean <= 1e-5 && logvar <= 1e-5, "{name}: {mean:e} {logvar:e}");
    }
}

#[test]
fn an_image_decodes_to_the_same_bits_alone_in_a_batch_and_for_any_number_of_threads() {
    let (model, io) = case("vae16");
    let latent = io("latent");
    let batch = Tensor::concat(&[&latent, &latent, &latent]);
    let whole = with_threads(2, || model.decode(&batch)).unwrap();
    for i in 0..6 {
        let alone = with_threads(1, || model.decode(&latent.slice(i % 2..i % 2 + 1))).unwrap();
        assert_eq!(whole.slice(i..i + 1).data(), alone.data());
    }
}

#[test]
fn normalising_undoes_denormalising() {
    for name in ["vae16", "vae4"] {
        let (model, io) = case(name);
        assert!(relative_error(&model.normalise(&model.denormalise(&io("latent"))), &io("latent")) < 1e-6);
    }
}

#[test]
fn a_config_that_cannot_be_is_refused_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read_to_string(fixture("autoencoder/vae16/config.json")).unwrap();
    let refusal = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        std::fs::write(folder.path().join("config.json"), good.replace(from, to)).unwrap();
        let error = Autoencoder::load(folder.path()).err().expect("must be refused");
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
