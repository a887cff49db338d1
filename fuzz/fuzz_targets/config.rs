//! The config of each part of a model, over weights that fit the unchanged one: what is accepted also runs.
#![no_main]

use std::path::PathBuf;

use engine::device::{Device, Tensor};
use engine::models::autoencoder::Autoencoder;
use engine::models::clip::{Clip, ClipText};
use engine::models::load_network;
use engine::models::lora::{Adapters, Rows};
use engine::models::network::Condition;
use engine::models::t5::T5;
use engine::rewards::preprocess::Preprocess;
use engine::rollout::schedule::Schedule;
use engine_fuzz::{check, choice, fixture, folder};
use libfuzzer_sys::fuzz_target;

/// Where the weights of each part are among the fixtures, and what its config is called.
const PARTS: [(&str, &str); 8] = [
    ("pipeline/no_t5/transformer/diffusion_pytorch_model.safetensors", "config.json"),
    ("pipeline/no_t5/vae/diffusion_pytorch_model.safetensors", "config.json"),
    ("pipeline/no_t5/text_encoder/model.safetensors", "config.json"),
    ("clip/quick/model.safetensors", "config.json"),
    ("t5/gated/model.safetensors", "config.json"),
    ("autoencoder/vae4/diffusion_pytorch_model.safetensors", "config.json"),
    ("", "scheduler_config.json"),
    ("", "preprocessor_config.json"),
];

/// The folder of a part, with a link to its weights.
fn part(which: usize) -> PathBuf {
    let (weights, _) = PARTS[which];
    let folder = folder().join(which.to_string());
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        let weights = fixture(weights);
        if let Some(name) = weights.file_name().filter(|_| weights.is_file()) {
            std::os::unix::fs::symlink(&weights, folder.join(name)).unwrap();
        }
    }
    folder
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::Cpu, &vec![1.0; shape.iter().product()], shape)
}

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, PARTS.len()) else { return };
    let folder = part(which);
    std::fs::write(folder.join(PARTS[which].1), data).unwrap();
    match which {
        0 => {
            let Some(network) = check(load_network(&folder, &Device::Cpu, None)) else { return };
            let sizes = network.sizes();
            let side = 2 * sizes.patch;
            if check(sizes.check_latent(side, side)).is_some() {
                let [embeds, pooled] = [ones(&[1, 2, sizes.text]), ones(&[1, sizes.pooled])];
                let condition = Condition { timestep: &[500.0], prompt_embeds: &embeds, pooled_prompt_embeds: &pooled };
                let rows = Rows::all(None, 1);
                network.forward(&ones(&[1, sizes.channels, side, side]), condition, &Adapters::none(&rows));
            }
        }
        1 | 5 => {
            if let Some(vae) = check(Autoencoder::load(&folder, &Device::Cpu, None)) {
                let image = vae.decode(&ones(&[1, vae.config().latent_channels, 2, 2]));
                assert_eq!(image.shape()[1..3], [2 * vae.config().downscale(); 2]);
            }
        }
        2 => {
            if let Some(clip) = check(ClipText::load(&folder, &Device::Cpu)) {
                clip.forward(&[vec![0; clip.config().max_position_embeddings.min(3)]]);
            }
        }
        3 => {
            if let Some(clip) = check(Clip::load(&folder, &Device::Cpu)) {
                let vision = &clip.config().vision;
                clip.image_embeds(&ones(&[1, vision.num_channels, vision.image_size, vision.image_size]));
                clip.text_embeds(&[vec![0]]);
            }
        }
        4 => {
            if let Some(t5) = check(T5::load(&folder, &Device::Cpu)) {
                t5.forward(&[vec![0, 1, 0]]);
            }
        }
        6 => {
            if let Some(schedule) = check(Schedule::load(&folder)) {
                if let Some(sigmas) = check(schedule.sigmas(7, 64)) {
                    assert!(sigmas.iter().all(|s| s.is_finite()), "{sigmas:?}");
                    sigmas.iter().for_each(|s| _ = schedule.timestep(*s));
                }
            }
        }
        _ => {
            if let Some(steps) = check(Preprocess::load(&folder, 8)) {
                steps.run(&Tensor::from_bytes(&Device::Cpu, &[128; 5 * 9 * 3], &[1, 5, 9, 3]));
            }
        }
    }
});
