//! What the rewards by CLIP have in common, each in its own numbers.

use std::path::PathBuf;

use super::*;
use crate::io::TensorFile;
use crate::io::image::RgbImage;
use crate::ops::testing::max_error;
use crate::rewards::Reward;
use crate::rewards::aesthetic::{self, Aesthetic};
use crate::rewards::clipscore::{self, ClipScore};
use crate::rewards::hpsv2::{self, Hpsv2};
use crate::rewards::pickscore::PickScore;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The fixture's model `clip/name`, whose vocabulary of 64 has no tokenizer, with one of three letters.
pub fn folder(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("clip").join(name).join(file), folder.path().join(file)).unwrap();
    }
    let letters = [("a", 5), ("b", 6), ("c", 7)];
    let mut vocab: serde_json::Map<String, serde_json::Value> = letters
        .into_iter()
        .flat_map(|(l, id)| [(l.to_string(), id.into()), (format!("{l}</w>"), (id + 10).into())])
        .collect();
    vocab.insert("<|startoftext|>".into(), 60.into());
    vocab.insert("<|endoftext|>".into(), 61.into());
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", serde_json::to_string(&vocab).unwrap());
    write("merges.txt", "#version: 0.2\n".to_string());
    write(
        "tokenizer_config.json",
        r#"{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#
            .to_string(),
    );
    folder
}

pub fn prompt(text: &str) -> Prompt {
    Prompt { text: text.into(), tag: None, include: vec![], exclude: vec![], line: 1 }
}

pub fn image(seed: usize) -> RgbImage {
    RgbImage { width: 30, height: 24, data: (0..30 * 24 * 3).map(|i| (i * i * seed / 7 % 256) as u8).collect() }
}

/// All rewards of the family on small models in both layouts, with prompts of their own where there is no tokenizer.
fn rewards(dtype: Dtype) -> Vec<Box<dyn Reward>> {
    let (folder, cpu) = (folder("quick"), &Device::Cpu);
    let (clip, head) = (folder.path(), fixture("clip_rewards/head.safetensors"));
    let mut all: Vec<Box<dyn Reward>> = vec![Box::new(PickScore::load(clip, dtype, cpu).unwrap())];
    for resize in [clipscore::Resize::TensorBilinear, clipscore::Resize::Pil] {
        all.push(Box::new(ClipScore::load(clip, resize, dtype, cpu).unwrap()));
    }
    for resize in [aesthetic::Resize::Pil, aesthetic::Resize::Rsm] {
        all.push(Box::new(Aesthetic::load(clip, &head, resize, dtype, cpu).unwrap()));
    }
    all
}

#[test]
fn a_picture_s_score_is_the_same_bits_alone_and_in_a_batch_in_either_precision() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (all, fresh) = (rewards(dtype), rewards(dtype));
        let pictures: Vec<RgbImage> = (0..19).map(image).collect();
        let texts = ["a", "b c", "a", "abc", "b c"].map(prompt);
        let prompts: Vec<&Prompt> = (0..19).map(|i| &texts[i % 5]).collect();
        for (reward, alone) in all.iter().zip(&fresh) {
            let batch = |pictures: &[RgbImage]| Images::from_pictures(pictures.to_vec(), &Device::Cpu);
            let scores = reward.score(&batch(&pictures), &prompts).unwrap();
            let values: std::collections::BTreeSet<String> = scores.iter().map(|s| s.value.to_string()).collect();
            assert!(values.len() > 10, "{} {dtype:?}: {values:?}", reward.name());
            for i in [0, 7, 15, 16, 18] {
                let one = alone.score(&batch(&pictures[i..=i]), &prompts[i..=i]).unwrap();
                assert_eq!(one, scores[i..=i], "{} {dtype:?}", reward.name());
            }
        }
    }
}

#[test]
fn halving_the_precision_moves_a_score_by_little() {
    let (pictures, text) = ([1, 2, 3].map(image), prompt("b c"));
    let images = Images::from_pictures(pictures.to_vec(), &Device::Cpu);
    for (single, half) in rewards(Dtype::F32).iter().zip(rewards(Dtype::Bf16)) {
        let [a, b] = [single, &half].map(|reward| reward.score(&images, &[&text; 3]).unwrap());
        for (a, b) in a.iter().zip(&b) {
            let apart = (a.value - b.value).abs();
            assert!(apart > 0.0 && apart < 0.03, "{}: {} {}", single.name(), a.value, b.value);
        }
    }
}

#[test]
fn scores_and_gradients_of_decoded_pictures_are_those_of_torch() {
    let io = TensorFile::open(&fixture("clip_rewards/gradients.safetensors")).unwrap();
    let get = |name: &str| io.tensor(name, &Device::Cpu).unwrap();
    let wide = |name: &str| -> Vec<f64> { get(name).to_host().into_iter().map(f64::from).collect() };
    let (folder, cpu) = (folder("quick"), &Device::Cpu);
    let (clip, head) = (folder.path(), fixture("clip_rewards/head.safetensors"));
    let prompts = ["0", "1"].map(prompt);
    let know = |similarity: &Similarity| {
        let text = get("text");
        prompts.iter().zip(text.to_host().chunks(20)).for_each(|(prompt, row)| similarity.know(&prompt.text, row));
    };
    let pickscore = PickScore::load(clip, Dtype::F32, cpu).unwrap();
    let clipscore = ClipScore::load(clip, clipscore::Resize::TensorBilinear, Dtype::F32, cpu).unwrap();
    let hpsv2 = Hpsv2::load(clip, hpsv2::Resize::Tensor, Dtype::F32, cpu);
    assert!(hpsv2.err().unwrap().to_string().contains("are not the 49408 of the built-in one"));
    let hpsv2 = Hpsv2::of(Similarity { tokenizer: Tokenizer::blank(16), ..similarity(clip, Floats::padded(24)) });
    let aesthetic = Aesthetic::load(clip, &head, aesthetic::Resize::Rsm, Dtype::F32, cpu).unwrap();
    [pickscore.similarity(), clipscore.similarity(), hpsv2.similarity()].into_iter().for_each(know);
    let factor = pickscore.similarity().factor() / 26.0;
    let cases: [(&dyn Reward, &str, f64); 4] = [
        (&pickscore, "padded", factor),
        (&clipscore, "cropped", 1.0),
        (&hpsv2, "padded", 1.0),
        (&aesthetic, "stretched", 1.0),
    ];
    for (reward, way, factor) in cases {
        let (decoded, name) = (get("decoded"), reward.name());
        if name != "pickscore" {
            let scores = reward.score(&Images::decoded(decoded.clone()), &prompts.each_ref()).unwrap();
            for (score, want) in scores.iter().zip(wide(&format!("{way}.scores"))) {
                assert!((score.value - want).abs() < 1e-6, "{name}: {} {want}", score.value);
            }
        }
        let gradient = reward.gradient().unwrap().gradient(&decoded, &prompts.each_ref()).unwrap();
        let want: Vec<f64> = wide(&format!("{way}.gradient")).iter().map(|g| g * factor).collect();
        let error = max_error(&gradient, &want);
        println!("{name}: gradient off by {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

/// The model at `clip`, whose tokenizer is beside it.
fn similarity(clip: &Path, steps: Floats) -> Similarity {
    let pixels = |_| Ok(Pixels::Floats(steps));
    Similarity::load(clip, Maker::Transformers, Dtype::F32, &Device::Cpu, pixels).unwrap()
}
