use std::path::Path;

use engine::data::Prompt;
use engine::device::{DType, Device, Precision, Tensor};
use engine::io::image::RgbImage;
use engine::io::{TensorFile, read_json, safetensors};
use engine::models::owl::{Owl, Sentence};
use engine::models::tokenizer::SentencePiece;
use engine::ops::copy;
use engine::rewards::deqa::Deqa;
use engine::rewards::{Dtype, Images, Reward};

use super::{Listed, devices, fixture, hashed, read, relative_error, write_listed};

/// f32 against f32: rounding of a few layers in another order.
const BOUND: f64 = 1e-5;

#[derive(serde::Deserialize)]
struct Io {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    begin: u32,
    before: Vec<u32>,
    after: Vec<u32>,
    words: Vec<u32>,
    /// From 1 to 5.
    scores: Vec<f64>,
}

fn io() -> (Io, TensorFile) {
    let folder = fixture("deqa");
    (read_json(&folder.join("io.json")).unwrap(), TensorFile::open(&folder.join("io.safetensors")).unwrap())
}

/// The model in a folder of its own, as people have it, but for the tensors named `without`.
fn folder(without: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let listing: Vec<Listed> = read_json(&fixture("deqa/tensors.json")).unwrap();
    let kept = listing.into_iter().filter(|t| without.is_empty() || !t.name.contains(without));
    write_listed(&folder.path().join("model.safetensors"), kept);
    for name in ["config.json", "tokenizer.model"] {
        std::fs::copy(fixture("deqa").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn load(folder: &Path, dtype: Dtype) -> Deqa {
    load_on(folder, dtype, &Device::Cpu)
}

fn load_on(folder: &Path, dtype: Dtype, device: &Device) -> Deqa {
    Deqa::load(folder, None, dtype, device).unwrap()
}

fn prompt() -> Prompt {
    Prompt { text: String::new(), tag: None, include: vec![], exclude: vec![], line: 1 }
}

fn scores(reward: &Deqa, pictures: &[RgbImage]) -> Vec<f64> {
    let images = Images::from_pictures(pictures.to_vec(), &Device::Cpu);
    let scores = reward.score(&images, &vec![&prompt(); pictures.len()]);
    scores.unwrap().into_iter().map(|s| s.value).collect()
}

#[test]
fn llamas_vocabulary_gives_the_ids_of_sentencepiece() {
    let (io, _) = io();
    let tokenizer = SentencePiece::load(&fixture("deqa/tokenizer.model")).unwrap();
    for (text, ids) in io.texts.iter().zip(&io.ids) {
        assert_eq!(&tokenizer.encode(text), ids, "{text:?}");
    }
    assert_eq!((tokenizer.begin(), tokenizer.count()), (io.begin, 420));
}

#[test]
fn a_damaged_vocabulary_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let whole = std::fs::read(fixture("deqa/tokenizer.model")).unwrap();
    for length in (0..whole.len()).step_by(41) {
        std::fs::write(&path, &whole[..length]).unwrap();
        // At its end there is what nobody reads.
        let Some(error) = SentencePiece::load(&path).err() else { continue };
        assert!(format!("{error:#}").contains("tokenizer.model"), "{error}");
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(SentencePiece::load(&path).is_err());
}

#[test]
fn mplug_owl2_and_the_score_match_the_authors_formulas() {
    let (io, file) = io();
    let dir = folder("");
    let owl = Owl::load(dir.path(), &Device::Cpu, Precision::Stored).unwrap();
    let reward = load(dir.path(), Dtype::F32);
    let sentence = Sentence { before: io.before, after: io.after };
    for (i, want) in io.scores.iter().enumerate() {
        let get = |name: &str| read(&file, &format!("{i}.{name}"));
        let seen = owl.see(&get("pixel_values"));
        let error = relative_error(&seen, &get("seen"));
        assert!(error <= BOUND, "picture {i}: {error:e}");
        let logits = owl.continued(&sentence, &seen, &io.words);
        let error = relative_error(&logits, &get("logits"));
        assert!(error <= BOUND, "logits of picture {i}: {error:e}");
        let pixels = file.entry(&format!("{i}.image")).unwrap();
        let [height, width, _] = pixels.shape() else { panic!("{:?}", pixels.shape()) };
        let image = RgbImage { width: *width, height: *height, data: pixels.raw().to_vec() };
        let found = scores(&reward, std::slice::from_ref(&image))[0];
        println!("picture {i}: {found} {}", want / 5.0);
        assert!((found - want / 5.0).abs() <= BOUND, "picture {i}: {found}, expected {}", want / 5.0);
        says_why(&reward, &image, found, &get("logits"));
    }
}

/// What is shown of `image` are the logits of the words, and how likely these make them, whose mean is the score `found`.
fn says_why(reward: &Deqa, image: &RgbImage, found: f64, logits: &Tensor) {
    let images = Images::from_pictures(vec![image.clone()], &Device::Cpu);
    let (score, shown) = reward.explain(&images, &[&prompt()]).unwrap().unwrap().remove(0);
    assert_eq!(score.value, found);
    let words = ["excellent", "good", "fair", "poor", "bad"];
    let of = |key: &str| words.map(|word| shown[word][key].as_f64().unwrap());
    let shown_logits = Tensor::from_slice(&Device::Cpu, &of("logit").map(|x| x as f32), &[1, 5]);
    assert!(relative_error(&shown_logits, logits) <= BOUND, "{shown}");
    let likely = of("likelihood");
    let mean: f64 = likely.iter().zip([5.0, 4.0, 3.0, 2.0, 1.0]).map(|(p, level)| p * level).sum();
    assert!((likely.iter().sum::<f64>() - 1.0).abs() < 1e-12 && (mean / 5.0 - found).abs() < 1e-12, "{shown}");
}

#[test]
fn a_score_of_deqa_depends_on_the_picture_alone() {
    let dir = folder("");
    let data = |seed: usize| (0..20 * 30 * 3).map(|i| hashed("pictures", i + seed * 1800) as u8).collect();
    let pictures: Vec<RgbImage> = (0..6).map(|seed| RgbImage { width: 30, height: 20, data: data(seed) }).collect();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let reward = load(dir.path(), dtype);
        let all = scores(&reward, &pictures);
        for (i, together) in all.iter().enumerate() {
            assert_eq!(scores(&load(dir.path(), dtype), &pictures[i..=i])[0], *together, "{dtype:?}: {i}");
        }
        assert_ne!(all[0], all[1]);
    }
    let of = |dtype| scores(&load(dir.path(), dtype), &pictures);
    let errors = of(Dtype::F32).into_iter().zip(of(Dtype::Bf16)).map(|(a, b)| (a - b).abs());
    let most = errors.fold(0.0, f64::max);
    assert!(most > 0.0 && most < 0.02, "{most}");
    let sent = Deqa::load(dir.path(), Some(75.0), Dtype::F32, &Device::Cpu).unwrap();
    assert_ne!(scores(&sent, &pictures)[0], of(Dtype::F32)[0]);
}

#[test]
fn deqa_on_a_gpu_gives_the_cpu_s_scores_in_any_batch_and_a_plan_takes_memory() {
    let dir = folder("");
    let data = |seed: usize| (0..20 * 30 * 3).map(|i| hashed("pictures", i + seed * 1800) as u8).collect();
    let pictures: Vec<RgbImage> = (0..2).map(|seed| RgbImage { width: 30, height: 20, data: data(seed) }).collect();
    let gpu = &devices()[1];
    for (dtype, bound) in [(Dtype::F32, BOUND), (Dtype::Bf16, 0.04)] {
        let want = scores(&load(dir.path(), dtype), &pictures);
        let reward = load_on(dir.path(), dtype, gpu);
        let found = scores(&reward, &pictures);
        gpu.check().unwrap();
        let apart = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= bound, "{dtype:?}: {found:?}, on the CPU {want:?}");
        assert_eq!(scores(&reward, &pictures[1..])[0], found[1], "{dtype:?}");
    }
    let (plan, _) = gpu.rehearsal().unwrap();
    plan.phase("reward");
    scores(&load_on(dir.path(), Dtype::F32, &plan), &pictures[..1]);
    let weights = dir.path().join("model.safetensors").metadata().unwrap().len();
    assert!(plan.peak() > weights / 2, "{} bytes", plan.peak());
}

/// As the published files are.
#[test]
fn weights_of_deqa_in_f16_are_widened() {
    let (dir, pictures) =
        (folder(""), [RgbImage { width: 16, height: 16, data: (0..768).map(|i| (i * 7) as u8).collect() }]);
    let whole = scores(&load(dir.path(), Dtype::F32), &pictures)[0];
    let path = dir.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let halved = |name: &str| (name.to_string(), copy::cast(&read(&file, name), DType::F16));
    let halves: Vec<_> = file.names().map(halved).collect();
    safetensors::save(&path, halves, &Default::default()).unwrap();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let half = scores(&load(dir.path(), dtype), &pictures)[0];
        assert!(half != whole && (half - whole).abs() < 0.01, "{dtype:?}: {half}, in f32 {whole}");
    }
}

#[test]
fn what_is_missing_of_deqa_is_named() {
    let error = |folder: &Path| format!("{:#}", Deqa::load(folder, None, Dtype::F32, &Device::Cpu).err().unwrap());
    for (without, words) in [
        ("visual_abstractor.query_embeds", "missing tensor 'model.visual_abstractor.query_embeds'"),
        ("layers.1.self_attn.k_proj.multiway.1", "missing tensor 'model.layers.1.self_attn.k_proj.multiway.1.weight'"),
        (
            "layers.0.self_attn.query_key_value.bias",
            "missing tensor 'model.vision_model.encoder.layers.0.self_attn.q_proj.bias'",
        ),
    ] {
        let message = error(folder(without).path());
        assert!(message.contains("model.safetensors") && message.contains(words), "{message}");
    }
    let dir = folder("");
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    assert!(error(dir.path()).contains("tokenizer.model"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("config.json: no key 'rms_norm_eps'"));
}
