use std::path::Path;

use engine::device::{DType, Device, Tensor};
use engine::io::{TensorFile, read_json, safetensors};
use engine::models::load_network;
use engine::models::lora::{Adapters, Rows};
use engine::models::source::Model;
use engine::models::text::{PromptEmbeds, TextEncoders};
use engine::ops::linear;

use super::{bits, devices, fixture, random, read};

const ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// A pipeline whose encoders have `fixture`'s weights rounded to `types`, stored so or, if `widened`, in single precision.
fn pipeline(to: &Path, types: [DType; 2], widened: bool) {
    let from = fixture("pipeline/no_t5");
    std::fs::copy(from.join("model_index.json"), to.join("model_index.json")).unwrap();
    for folder in ["tokenizer", "tokenizer_2", "transformer", ENCODERS[0], ENCODERS[1]] {
        std::fs::create_dir(to.join(folder)).unwrap();
        for entry in std::fs::read_dir(from.join(folder)).unwrap().map(|e| e.unwrap()) {
            std::fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
    for (encoder, dtype) in ENCODERS.into_iter().zip(types) {
        let name = format!("{encoder}/model.safetensors");
        let file = TensorFile::open(&from.join(&name)).unwrap();
        let tensors = file.names().filter_map(|name| {
            let rounded = linear::rounded(&file.tensor(name, &Device::Cpu).ok()?, dtype);
            Some((name.to_string(), if widened { linear::rounded(&rounded, DType::F32) } else { rounded }))
        });
        safetensors::save(&to.join(&name), tensors, &Default::default()).unwrap();
    }
}

fn encode(types: [DType; 2], widened: bool, device: &Device) -> PromptEmbeds {
    let folder = tempfile::tempdir().unwrap();
    pipeline(folder.path(), types, widened);
    let settings: serde_json::Value = read_json(&fixture("pipeline/no_t5/io.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_value(settings["prompts"].clone()).unwrap();
    TextEncoders::load(&Model::in_folder(folder.path()).unwrap(), device).unwrap().encode(&prompts, 3).unwrap()
}

/// The types are those of `torch.cat` in `encode_prompt`: without T5 its zeros have the first encoder's.
#[test]
fn embeddings_have_the_type_of_the_encoders_that_they_come_from() {
    use DType::{Bf16, F16, F32};
    for (types, want) in [
        ([F16, F16], [F16, F16]),
        ([Bf16, Bf16], [Bf16, Bf16]),
        ([F32, F32], [F32, F32]),
        ([F16, Bf16], [F16, F32]),
        ([F32, F16], [F32, F32]),
    ] {
        let pairs = |e: PromptEmbeds| [e.prompt_embeds, e.pooled_prompt_embeds];
        let whole = pairs(encode(types, true, &Device::Cpu));
        let got = devices().map(|device| pairs(encode(types, false, &device)));
        for ((got, whole), dtype) in got.iter().flatten().zip(whole.iter().cycle()).zip(want.iter().cycle().copied()) {
            assert_eq!((got.dtype(), whole.dtype()), (dtype, F32), "{types:?}");
            let one = match dtype {
                F16 => 1.0 / 2048.0,
                Bf16 => 1.0 / 256.0,
                _ => 0.0,
            };
            // Half a unit of the type on top of what encoders with narrow weights themselves differ by.
            let scale = whole.to_host().iter().fold(0f32, |m, v| m.max(v.abs()));
            for (g, w) in got.to_host().iter().zip(whole.to_host()) {
                assert!((g - w).abs() <= one * w.abs() + 1e-2 * scale, "{types:?}: {g} {w}");
            }
        }
    }
}

#[test]
fn a_network_takes_narrow_embeddings_as_the_numbers_they_are() {
    let io = TensorFile::open(&fixture("lora_kinds/io.safetensors")).unwrap();
    for device in devices() {
        let network = load_network(&fixture("pipeline/no_t5/transformer"), &device, None).unwrap();
        let [text, pooled] = ["prompt_embeds", "pooled_prompt_embeds"].map(|name| read(&io, name).to(&device));
        let (x, timestep) = (random(&[2, 16, 4, 6], 1).to(&device), [250.0, 800.0]);
        let rows = Rows::all(None, 2);
        let velocity = |embeds: &PromptEmbeds| network.forward(&x, embeds.condition(&timestep), &Adapters::none(&rows));
        for dtype in [DType::F16, DType::Bf16] {
            let stored = |to: DType| {
                let of = |t: &Tensor| linear::rounded(&linear::rounded(t, dtype), to);
                PromptEmbeds { prompt_embeds: of(&text), pooled_prompt_embeds: of(&pooled) }
            };
            let (narrow, wide) = (stored(dtype), stored(DType::F32));
            assert_eq!(narrow.bytes() * 2, wide.bytes());
            assert!(bits(&velocity(&narrow)) == bits(&velocity(&wide)));
            let both = PromptEmbeds::concat(&[&narrow.rows(&[0]), &narrow.rows(&[1])]);
            assert!(both.bytes() == narrow.bytes() && bits(&velocity(&both)) == bits(&velocity(&wide)));
        }
    }
}
