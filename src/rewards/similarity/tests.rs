//! What the rewards by CLIP have in common, each in its own numbers.

use std::path::PathBuf;

use super::*;
use crate::io::TensorFile;
use crate::io::image::RgbImage;
use crate::models::autoencoder::Autoencoder;
use crate::ops::testing::{devices, max_error, random};
use crate::rewards::aesthetic::{self, Aesthetic};
use crate::rewards::clipscore::{self, ClipScore};
use crate::rewards::hpsv2::{self, Hpsv2};
use crate::rewards::jpeg::Jpeg;
use crate::rewards::pickscore::PickScore;
use crate::rewards::{DIFFERENTIABLE, Reward, WeightedSum};

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

/// The four rewards that have a gradient, on one small model, for prompts called 0 and 1 with these embeddings; and the factor of
/// PickScore.
fn differentiable(text: &[f32], device: &Device) -> (Vec<Box<dyn Reward>>, f64) {
    let (folder, head) = (folder("quick"), fixture("clip_rewards/head.safetensors"));
    let clip = folder.path();
    let know = |similarity: &Similarity| {
        text.chunks(20).enumerate().for_each(|(i, row)| similarity.know(&i.to_string(), row));
    };
    let pickscore = PickScore::load(clip, Dtype::F32, device).unwrap();
    let clipscore = ClipScore::load(clip, clipscore::Resize::TensorBilinear, Dtype::F32, device).unwrap();
    let hpsv2 = Hpsv2::load(clip, hpsv2::Resize::Tensor, Dtype::F32, device);
    assert!(hpsv2.err().unwrap().to_string().contains("are not the 49408 of the built-in one"));
    let with_steps = similarity(clip, Floats::padded(24), device);
    let hpsv2 = Hpsv2::of(Similarity { tokenizer: Tokenizer::blank(16), ..with_steps });
    let aesthetic = Aesthetic::load(clip, &head, aesthetic::Resize::Rsm, Dtype::F32, device).unwrap();
    [pickscore.similarity(), clipscore.similarity(), hpsv2.similarity()].into_iter().for_each(know);
    let factor = pickscore.similarity().factor() / 26.0;
    (vec![Box::new(pickscore), Box::new(clipscore), Box::new(hpsv2), Box::new(aesthetic)], factor)
}

#[test]
fn scores_and_gradients_of_decoded_pictures_are_those_of_torch() {
    let io = TensorFile::open(&fixture("clip_rewards/gradients.safetensors")).unwrap();
    let get = |name: &str| io.tensor(name, &Device::Cpu).unwrap();
    let wide = |name: &str| -> Vec<f64> { get(name).to_host().into_iter().map(f64::from).collect() };
    let prompts = ["0", "1"].map(prompt);
    for device in devices() {
        let (rewards, factor) = differentiable(&get("text").to_host(), &device);
        let ways = ["padded", "cropped", "padded", "stretched"].into_iter().zip([factor, 1.0, 1.0, 1.0]);
        for (reward, (way, factor)) in rewards.iter().zip(ways) {
            let (decoded, name) = (get("decoded").to(&device), reward.name());
            if name != "pickscore" {
                let scores = reward.score(&Images::decoded(decoded.clone()), &prompts.each_ref()).unwrap();
                for (score, want) in scores.iter().zip(wide(&format!("{way}.scores"))) {
                    assert!((score.value - want).abs() < 1e-6, "{name} on {device:?}: {} {want}", score.value);
                }
            }
            let gradient = reward.gradient().unwrap().gradient(&decoded, &prompts.each_ref()).unwrap();
            let want: Vec<f64> = wide(&format!("{way}.gradient")).iter().map(|g| g * factor).collect();
            let error = max_error(&gradient, &want);
            println!("{name} on {device:?}: gradient off by {error:.1e}");
            assert!(error < 1e-5, "{name} on {device:?}: {error:e}");
        }
    }
}

/// From the latent through decoder, preprocessing, tower and head of each reward, and back.
#[test]
fn the_gradient_of_a_sum_of_rewards_to_the_latent_is_that_of_torch_and_of_finite_differences() {
    let io = TensorFile::open(&fixture("clip_rewards/to_latent.safetensors")).unwrap();
    let get = |name: &str| io.tensor(name, &Device::Cpu).unwrap();
    let prompts = ["0", "1"].map(prompt);
    let weights = [0.5, -1.5, 2.0, 0.25];
    for device in devices() {
        let (rewards, _) = differentiable(&get("text").to_host(), &device);
        let sum = WeightedSum::new(rewards.into_iter().zip(weights).collect()).unwrap();
        let vae = Autoencoder::load(fixture("autoencoder/vae16").as_path(), &device, None).unwrap();
        let latent = get("latent").to(&device);
        let of_pictures = |range: std::ops::Range<usize>, pictures: &Tensor| {
            sum.gradient(pictures, &prompts[range].iter().collect::<Vec<_>>())
        };
        let gradient = vae.gradient(&latent, of_pictures).unwrap();
        let want: Vec<f64> = get("gradient").to_host().into_iter().map(f64::from).collect();
        let error = max_error(&gradient, &want);
        println!("on {device:?}: gradient to the latent off by {error:.1e}");
        // Two networks behind one another, each within 1e-5 of its own.
        assert!(error < 2e-5, "on {device:?}: {error:e}");
        if !matches!(device, Device::Cpu) {
            continue;
        }
        // PickScore's own score is of 8 bits: along a direction it has no slope.
        let smooth = |latent: &Tensor| -> f64 {
            let images = Images::decoded(vae.decode(latent));
            let scores = sum.score(&images, &prompts.each_ref()).unwrap();
            let smooth = scores.rewards.iter().zip(weights).filter(|((name, _), _)| name != "pickscore");
            smooth.map(|((_, scores), w)| w * scores.iter().map(|s| s.value).sum::<f64>()).sum()
        };
        let (rewards, _) = differentiable(&get("text").to_host(), &device);
        let without = WeightedSum::new(rewards.into_iter().zip(weights).skip(1).collect()).unwrap();
        let gradient = vae.gradient(&latent, |range: std::ops::Range<usize>, pictures: &Tensor| {
            without.gradient(pictures, &prompts[range].iter().collect::<Vec<_>>())
        });
        let (gradient, direction) = (gradient.unwrap().to_host(), random(latent.shape(), 7));
        let along: f64 = gradient.iter().zip(direction.host()).map(|(g, d)| f64::from(g * d)).sum();
        const STEP: f32 = 2e-3;
        let moved = |step: f32| {
            let moved: Vec<f32> = latent.host().iter().zip(direction.host()).map(|(x, d)| x + step * d).collect();
            smooth(&Tensor::from_slice(&device, &moved, latent.shape()))
        };
        let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        println!("along a direction {slope} {along}");
        // Scores of f32 are off by about 1e-6, divided by the step; pixels that leave 0 to 1 within it bend the line.
        assert!((slope - along).abs() < 0.02 * along.abs(), "{slope} {along}");
    }
}

#[test]
fn rewards_without_a_gradient_are_refused_unless_they_are_only_watched() {
    let sum = |jpeg: f64| {
        let (mut rewards, _) = differentiable(&[1.0; 40], &Device::Cpu);
        let terms = [(rewards.remove(1), 1.0), (Box::new(Jpeg::Compressibility) as Box<dyn Reward>, jpeg)];
        WeightedSum::new(terms.into()).unwrap()
    };
    sum(0.0).check_gradient().unwrap();
    let picture = random(&[1, 24, 24, 3], 1);
    assert_eq!(sum(0.0).gradient(&picture, &[&prompt("0")]).unwrap().shape(), picture.shape());
    let want = "rewards.jpeg_compressibility: it has no gradient; those that have one are aesthetic, clipscore, hpsv2, pickscore";
    assert_eq!(sum(0.1).check_gradient().unwrap_err().to_string(), want);
    assert_eq!(sum(0.1).gradient(&picture, &[&prompt("0")]).unwrap_err().to_string(), want);
    let (rewards, _) = differentiable(&[1.0; 40], &Device::Cpu);
    let mut names: Vec<&str> = rewards.iter().filter(|r| r.gradient().is_some()).map(|r| r.name()).collect();
    names.sort_unstable();
    assert_eq!(names, DIFFERENTIABLE);
}

/// The model at `clip`, whose tokenizer is beside it.
fn similarity(clip: &Path, steps: Floats, device: &Device) -> Similarity {
    let pixels = |_| Ok(Pixels::Floats(steps));
    Similarity::load(clip, Maker::Transformers, Dtype::F32, device, pixels).unwrap()
}
