use engine::device::Device;
use engine::io::{TensorFile, read_json};
use engine::models::source::Model;
use engine::models::text::{TextEncoders, Truncated};

use super::{bits, devices, fixture, read, relative_error};

fn encoders() -> TextEncoders {
    TextEncoders::load(&Model::in_folder(&fixture("pipeline/no_t5")).unwrap(), &Device::Cpu).unwrap()
}

fn io_json() -> serde_json::Value {
    read_json(&fixture("pipeline/no_t5/io.json")).unwrap()
}

fn prompts() -> Vec<String> {
    serde_json::from_value(io_json()["prompts"].clone()).unwrap()
}

#[test]
fn conditions_match_diffusers_for_prompts_and_negative_prompts() {
    let io = TensorFile::open(&fixture("pipeline/no_t5/io.safetensors")).unwrap();
    let settings = io_json();
    for device in devices() {
        let encoders = TextEncoders::load(&Model::in_folder(&fixture("pipeline/no_t5")).unwrap(), &device).unwrap();
        for run in ["plain", "negative"] {
            let of = &settings["runs"][run];
            let length = of["max_sequence_length"].as_u64().unwrap() as usize;
            let negative = vec![of["negative_prompt"].as_str().unwrap().to_string(); 2];
            for (prefix, prompts) in [("", prompts()), ("negative_", negative)] {
                let got = encoders.encode(&prompts, length).unwrap();
                for (key, got) in
                    [("prompt_embeds", &got.prompt_embeds), ("pooled_prompt_embeds", &got.pooled_prompt_embeds)]
                {
                    let error = relative_error(got, &read(&io, &format!("{run}.{prefix}{key}")));
                    println!("pipeline/no_t5 {run}.{prefix}{key} on {device:?}: {error:.1e}");
                    assert!(error <= 1e-5, "{run}.{prefix}{key} on {device:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_prompt_alone_in_a_batch_and_repeated_gives_the_same_bits() {
    let encoders = encoders();
    let mut many: Vec<String> = (0..19).map(|i| format!("{i} squares on field {}", i % 3)).collect();
    many.extend(prompts());
    many.push(many[4].clone());
    let all = encoders.encode(&many, 7).unwrap();
    for (i, prompt) in many.iter().enumerate() {
        let alone = encoders.encode(std::slice::from_ref(prompt), 7).unwrap();
        assert!(bits(&alone.prompt_embeds) == bits(&all.prompt_embeds.slice(i..i + 1)), "{prompt}");
        assert!(bits(&alone.pooled_prompt_embeds) == bits(&all.pooled_prompt_embeds.slice(i..i + 1)), "{prompt}");
    }
}

#[test]
fn prompts_that_are_cut_are_reported_once_per_encoder() {
    let long = prompts()[1].clone();
    let got = encoders().truncated([&long[..], "a"], 12).unwrap();
    let [first, second] = &got[..] else { panic!("{got:?}") };
    assert_eq!((first.encoder, second.encoder), ("text_encoder", "text_encoder_2"));
    assert!(first.dropped > 0);
    assert_eq!(*first, Truncated { prompt: long, encoder: "text_encoder", dropped: second.dropped });
}

#[test]
fn a_sequence_length_or_a_width_that_cannot_be_is_refused() {
    let encoders = encoders();
    for length in [0, 513] {
        let message = encoders.encode(&prompts(), length).err().unwrap().to_string();
        assert!(message.contains(&format!("max_sequence_length is {length}")), "{message}");
    }
    // The same encoders beside another transformer.
    let (folder, whole) = (tempfile::tempdir().unwrap(), fixture("pipeline/no_t5"));
    for name in ["model_index.json", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
        std::os::unix::fs::symlink(whole.join(name), folder.path().join(name)).unwrap();
    }
    let mut config: serde_json::Value = read_json(&whole.join("transformer/config.json")).unwrap();
    config["joint_attention_dim"] = 32.into();
    std::fs::create_dir(folder.path().join("transformer")).unwrap();
    std::fs::write(folder.path().join("transformer/config.json"), config.to_string()).unwrap();
    let message =
        Model::in_folder(folder.path()).and_then(|m| TextEncoders::load(&m, &Device::Cpu)).err().unwrap().to_string();
    assert!(message.contains("joint_attention_dim is 32"), "{message}");
}

#[test]
fn the_tiny_model_with_t5_is_conditioned_as_in_diffusers() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-sd3");
    let io = TensorFile::open(&fixture("tiny_sd3.safetensors")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&io.metadata()["prompts"]).unwrap();
    let length: usize = io.metadata()["max_sequence_length"].parse().unwrap();
    let encoders = TextEncoders::load(&Model::in_folder(&folder).unwrap(), &Device::Cpu).unwrap();
    for (prefix, prompts) in [("", prompts), ("negative_", vec![String::new(); 2])] {
        let got = encoders.encode(&prompts, length).unwrap();
        for (key, got) in [("prompt_embeds", &got.prompt_embeds), ("pooled_prompt_embeds", &got.pooled_prompt_embeds)] {
            let error = relative_error(got, &read(&io, &format!("{prefix}{key}")));
            println!("tiny-sd3 {prefix}{key}: {error:.1e}");
            assert!(error <= 1e-5, "{prefix}{key}: {error:e}");
        }
    }
}
