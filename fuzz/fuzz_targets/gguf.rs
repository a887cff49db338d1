//! Files with one part of a model or several, GGUF or safetensors: what is accepted has settings that can be checked and tensors
//! that can be read.
#![no_main]

use engine::device::Device;
use engine::io::TensorFile;
use engine::models::autoencoder::Autoencoder;
use engine::models::clip::ClipText;
use engine::models::load_network;
use engine::models::source::{Model, Parts, Source};
use engine::models::t5::T5;
use engine_fuzz::{check, choice, fixture, folder};
use libfuzzer_sys::fuzz_target;

/// More elements than that are not worth the time.
const MOST: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = choice(data, 6) else { return };
    let path = folder().join("part");
    std::fs::write(&path, data).unwrap();
    if let Some(file) = check(TensorFile::open(&path)) {
        for (name, entry) in file.entries() {
            assert_eq!(entry.raw().len(), entry.size());
            if entry.shape().iter().product::<usize>() <= MOST {
                check(file.tensor(name, &Device::Cpu));
            }
        }
    }
    let (device, file) = (&Device::Cpu, Some(path.clone()));
    let mut source = Source { model: fixture("pipeline/no_t5"), ..Source::default() };
    match which {
        0 => source.parts = Parts { transformer: file, ..Parts::default() },
        1 => source.parts = Parts { vae: file, ..Parts::default() },
        2 => source.parts = Parts { clip_l: file, ..Parts::default() },
        3 => source.parts = Parts { clip_g: file, ..Parts::default() },
        4 => source.parts = Parts { t5xxl: file, ..Parts::default() },
        _ => source.model = path,
    }
    let Some(model) = check(Model::open(&source)) else { return };
    for (name, part) in model.components() {
        match name {
            _ if part.is_folder() => {}
            "transformer" => _ = check(load_network(part, device, None)),
            "vae" => _ = check(Autoencoder::load(part, device, None)),
            "text_encoder" | "text_encoder_2" => _ = check(ClipText::load(part, device)),
            "text_encoder_3" => _ = check(T5::load(part, device)),
            _ => {}
        }
    }
});
