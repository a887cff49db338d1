use std::path::Path;

use engine::data::Prompt;
use engine::device::{DType, Device, Precision, Tensor};
use engine::io::image::RgbImage;
use engine::io::{TensorFile, read_json};
use engine::models::blip::Blip;
use engine::models::tokenizer::WordPiece;
use engine::rewards::imagereward::ImageReward;
use engine::rewards::{Dtype, Images, Reward, Score};

use super::{Listed, devices, fixture, hashed, read, relative_error, write_listed};

/// f32 against f32: rounding of a few layers in another order.
const BOUND: f64 = 1e-5;

#[derive(serde::Deserialize)]
struct Io {
    max_length: usize,
    strings: Vec<String>,
    ids: Vec<Vec<u32>>,
    prompts: Vec<String>,
    scores: Vec<f64>,
}

fn io() -> (Io, TensorFile) {
    let folder = fixture("imagereward");
    (read_json(&folder.join("io.json")).unwrap(), TensorFile::open(&folder.join("io.safetensors")).unwrap())
}

/// The model in a folder of its own, as people have it, but for the tensors named `without`.
fn folder(without: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let listing: Vec<Listed> = read_json(&fixture("imagereward/tensors.json")).unwrap();
    let kept = listing.into_iter().filter(|t| without.is_empty() || !t.name.contains(without));
    write_listed(&folder.path().join("ImageReward.safetensors"), kept);
    std::fs::copy(fixture("imagereward/vocab.txt"), folder.path().join("vocab.txt")).unwrap();
    folder
}

fn load(folder: &Path, dtype: Dtype) -> ImageReward {
    load_on(folder, dtype, &Device::Cpu)
}

fn load_on(folder: &Path, dtype: Dtype, device: &Device) -> ImageReward {
    ImageReward::load(folder, io().0.max_length, dtype, device).unwrap()
}

fn prompt(text: &str) -> Prompt {
    Prompt { text: text.into(), tag: None, include: vec![], exclude: vec![], line: 1 }
}

fn scores(reward: &ImageReward, pictures: &[RgbImage], prompts: &[Prompt]) -> Vec<Score> {
    let prompts: Vec<&Prompt> = prompts.iter().collect();
    reward.score(&Images::from_pictures(pictures.to_vec(), &Device::Cpu), &prompts).unwrap()
}

#[test]
fn the_vocabulary_of_bert_gives_the_ids_of_transformers() {
    let (io, _) = io();
    let tokenizer = WordPiece::load(&fixture("imagereward"), &["[DEC]", "[ENC]"]).unwrap();
    for (string, ids) in io.strings.iter().zip(&io.ids) {
        assert_eq!(&tokenizer.encode(string, io.max_length).unwrap(), ids, "{string:?}");
    }
    assert!(tokenizer.encode("a", 1).is_err());
}

#[test]
fn blip_and_the_reward_match_transformers() {
    let (io, file) = io();
    let dir = folder("");
    let weights = TensorFile::open(&dir.path().join("ImageReward.safetensors")).unwrap();
    let blip = Blip::load(&weights, &Device::Cpu, Precision::Stored).unwrap();
    let reward = load(dir.path(), Dtype::F32);
    let tokenizer = WordPiece::load(dir.path(), &["[DEC]", "[ENC]"]).unwrap();
    for (i, (text, want)) in io.prompts.iter().zip(&io.scores).enumerate() {
        let get = |name: &str| read(&file, &format!("{i}.{name}"));
        let batch = |t: Tensor| t.clone().reshape(&[&[1][..], t.shape()].concat());
        let seen = blip.see(&batch(get("pixel_values")));
        let error = relative_error(&seen, &batch(get("tokens")));
        assert!(error <= BOUND, "picture {i}: {error:e}");
        let ids = tokenizer.encode(text, io.max_length).unwrap();
        let error = relative_error(&blip.read(&[ids], &seen), &batch(get("cls")));
        assert!(error <= BOUND, "{text:?}: {error:e}");
        let pixels = file.entry(&format!("{i}.image")).unwrap();
        let [height, width, _] = pixels.shape() else { panic!("{:?}", pixels.shape()) };
        let image = RgbImage { width: *width, height: *height, data: pixels.raw().to_vec() };
        let found = scores(&reward, &[image], &[prompt(text)])[0].value;
        println!("{text:?}: {found} {want}");
        assert!((found - want).abs() <= BOUND, "{text:?}: {found}, transformers {want}");
    }
}

fn pictures() -> Vec<RgbImage> {
    let data = |seed: usize| (0..40 * 50 * 3).map(|i| hashed("pictures", i + seed * 6000) as u8).collect();
    (0..5).map(|seed| RgbImage { width: 50, height: 40, data: data(seed) }).collect()
}

#[test]
fn a_score_of_imagereward_depends_on_picture_and_prompt_alone() {
    let (dir, pictures) = (folder(""), pictures());
    let prompts = ["a red circle", "", "two blue squares", "a blue circle", "a red circle"].map(prompt);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let reward = load(dir.path(), dtype);
        let all = scores(&reward, &pictures, &prompts);
        for i in 0..pictures.len() {
            let alone = scores(&load(dir.path(), dtype), &pictures[i..=i], &prompts[i..=i]);
            assert_eq!(alone[0], all[i], "{dtype:?}: {i}");
        }
        // Both matter.
        assert_ne!(all[0], all[4]);
        assert_ne!(scores(&reward, &pictures[..1], &prompts[3..4])[0], all[0]);
    }
}

#[test]
fn imagereward_on_a_gpu_gives_the_cpu_s_scores_in_any_batch_and_a_plan_takes_memory() {
    let (dir, pictures) = (folder(""), pictures());
    let prompts = ["a red circle", "two blue squares", "a red circle"].map(prompt);
    let gpu = &devices()[1];
    for (dtype, bound) in [(Dtype::F32, BOUND), (Dtype::Bf16, 0.06)] {
        let want = scores(&load(dir.path(), dtype), &pictures[..3], &prompts);
        let reward = load_on(dir.path(), dtype, gpu);
        let found = scores(&reward, &pictures[..3], &prompts);
        gpu.check().unwrap();
        for (found, want) in found.iter().zip(&want) {
            let apart = (found.value - want.value).abs();
            assert!(apart <= bound, "{dtype:?}: {found:?}, on the CPU {want:?}");
        }
        assert_eq!(scores(&reward, &pictures[2..3], &prompts[2..])[0], found[2], "{dtype:?}");
    }
    let (plan, _) = gpu.rehearsal().unwrap();
    plan.phase("reward");
    scores(&load_on(dir.path(), Dtype::F32, &plan), &pictures[..1], &prompts[..1]);
    let weights = dir.path().join("ImageReward.safetensors").metadata().unwrap().len();
    assert!(plan.peak() > weights / 2, "{} bytes", plan.peak());
}

#[test]
fn imagereward_in_bf16_is_near_that_in_f32() {
    let (dir, pictures) = (folder(""), pictures());
    let prompts = ["a red circle", "", "two blue squares", "a blue circle", "the line"].map(prompt);
    let of = |dtype| scores(&load(dir.path(), dtype), &pictures, &prompts);
    let errors = of(Dtype::F32).into_iter().zip(of(Dtype::Bf16)).map(|(a, b)| (a.value - b.value).abs());
    let most = errors.fold(0.0, f64::max);
    assert!(most > 0.0 && most < 0.03, "{most}");
    assert_eq!(Dtype::Bf16.precision(), Precision::Half(DType::Bf16));
}

#[test]
fn what_is_missing_of_imagereward_is_named() {
    let error = |folder: &Path, length| {
        format!("{:#}", ImageReward::load(folder, length, Dtype::F32, &Device::Cpu).err().unwrap())
    };
    for (without, words) in [
        ("visual_encoder.pos_embed", "missing tensor 'blip.visual_encoder.pos_embed'"),
        (
            "layer.1.crossattention.self.key.weight",
            "missing tensor 'blip.text_encoder.encoder.layer.1.crossattention.self.key.weight'",
        ),
        ("mlp.layers.4.bias", "no tensor 'mlp.layers.4.bias'"),
    ] {
        let message = error(folder(without).path(), 12);
        assert!(message.contains("ImageReward.safetensors") && message.contains(words), "{message}");
    }
    let dir = folder("");
    assert!(error(dir.path(), 40).contains("max_length is 40, the model reads at most 24 tokens"));
    std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n").unwrap();
    let message = error(dir.path(), 12);
    assert!(message.contains("vocab.txt: 8 tokens with [DEC] and [ENC], the model"), "{message}");
    std::fs::remove_file(dir.path().join("vocab.txt")).unwrap();
    assert!(error(dir.path(), 12).contains("hf download google-bert/bert-base-uncased"));
    std::fs::remove_file(dir.path().join("ImageReward.safetensors")).unwrap();
    assert!(error(dir.path(), 12).contains("looked for ImageReward.safetensors, ImageReward.pt"));
}
