use std::path::PathBuf;

use super::*;
use crate::io::TensorFile;
use crate::io::image::RgbImage;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip/exact")
}

/// The fixture's model, whose vocabulary of 64 has no tokenizer, with one of five words.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture().join(name), folder.path().join(name)).unwrap();
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

fn prompt(text: &str) -> Prompt {
    Prompt { text: text.into(), tag: None, include: vec![], exclude: vec![], line: 1 }
}

fn image(seed: usize) -> RgbImage {
    RgbImage { width: 30, height: 24, data: (0..30 * 24 * 3).map(|i| (i * i * seed / 7 % 256) as u8).collect() }
}

#[test]
fn the_score_of_a_pair_is_the_logit_of_transformers_over_26() {
    let file = TensorFile::open(&fixture().join("io.safetensors")).unwrap();
    let get = |name: &str| file.tensor(name, &Device::Cpu).unwrap();
    let reward = PickScore::load(folder().path(), &Device::Cpu).unwrap();
    let prompts = ["0", "1", "2"].map(prompt);
    let texts = get("text_embeds");
    for (p, row) in prompts.iter().zip(texts.to_host().chunks(texts.width())) {
        reward.prompts.lock().unwrap().insert(p.text.clone(), unit(row));
    }
    let embeddings = reward.clip.image_embeds(&get("pixel_values"));
    let factor = f64::from(reward.clip.logit_scale()).exp();
    let cosines = reward.cosines(&embeddings, &prompts.each_ref());
    let logits = get("logits_per_image").to_host();
    for (i, cosine) in cosines.iter().enumerate() {
        let logit = f64::from(logits[i * 3 + i]);
        assert!((cosine * factor - logit).abs() < 1e-4, "{} {logit}", cosine * factor);
    }
}

#[test]
fn a_score_depends_on_image_and_prompt_alone() {
    let reward = PickScore::load(folder().path(), &Device::Cpu).unwrap();
    let (images, texts) = ([1, 2, 3, 4, 5].map(image), ["a", "b c", "a", "abc", "b c"].map(prompt));
    let batch = |pictures: &[RgbImage]| Images::from_pictures(pictures.to_vec(), &Device::Cpu);
    let all = reward.score(&batch(&images), &texts.each_ref()).unwrap();
    assert_eq!(reward.prompts.lock().unwrap().len(), 3);
    for i in 0..images.len() {
        let fresh = PickScore::load(folder().path(), &Device::Cpu).unwrap();
        assert_eq!(fresh.score(&batch(&images[i..=i]), &[&texts[i]]).unwrap(), all[i..=i]);
    }
    let ids = reward.tokenizer.encode("b c", 16).unwrap().ids;
    assert_eq!(ids[..4], [60, 16, 17, 61]);
    let text = unit(&reward.clip.text_embeds(&[ids]).to_host());
    let pixels = Preprocess::openai(24).run(batch(&images[1..2]).bytes());
    let picture = unit(&reward.clip.image_embeds(&pixels).to_host());
    let cosine: f64 = text.iter().zip(picture).map(|(a, b)| a * b).sum();
    assert_eq!(all[1].value, f64::from(reward.clip.logit_scale()).exp() / 26.0 * cosine);
}

#[test]
fn a_folder_without_tokenizer_says_where_it_comes_from() {
    let error = format!("{:#}", PickScore::load(&fixture(), &Device::Cpu).err().unwrap());
    assert!(
        error.contains("laion/CLIP-ViT-H-14-laion2B-s32B-b79K") && error.contains("tests/fixtures/clip/exact"),
        "{error}"
    );
}
