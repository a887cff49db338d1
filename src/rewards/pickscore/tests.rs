use super::*;
use crate::io::TensorFile;
use crate::rewards::similarity::tests::{fixture, folder, image, prompt};

#[test]
fn the_score_of_a_pair_is_the_logit_of_transformers_over_26() {
    let file = TensorFile::open(&fixture("clip/exact/io.safetensors")).unwrap();
    let get = |name: &str| file.tensor(name, &Device::Cpu).unwrap();
    let reward = PickScore::load(folder("exact").path(), Dtype::F32, &Device::Cpu).unwrap();
    let embeds = reward.similarity().clip().image_embeds(&get("pixel_values"));
    let (texts, logits) = (get("text_embeds"), get("logits_per_image").to_host());
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for (i, (image, text)) in embeds.to_host().chunks(20).zip(texts.to_host().chunks(20)).enumerate() {
        let (found, logit) = (cosine(image, text) * reward.similarity().factor(), f64::from(logits[i * 3 + i]));
        assert!((found - logit).abs() < 1e-4, "{found} {logit}");
    }
    // The same pair through all of the reward.
    let texts = ["a", "b c", "a"].map(prompt);
    let images = Images::from_pictures([1, 2, 1].map(image).to_vec(), &Device::Cpu);
    let scores = reward.score(&images, &texts.each_ref()).unwrap();
    assert_eq!(reward.similarity().known(), 2);
    assert!(scores[0] == scores[2] && scores[0] != scores[1]);
    let clip = reward.similarity().clip();
    let pixels = Preprocess::openai(24).run(&images.bytes().slice(1..2));
    let ids = [&[60, 16, 17, 61][..], &[61; 12]].concat();
    let (image, text) = (clip.image_embeds(&pixels).to_host(), clip.text_embeds(&[ids]).to_host());
    let want = cosine(&image, &text) * reward.similarity().factor() / 26.0;
    assert!((scores[1].value - want).abs() < 1e-12, "{} {want}", scores[1].value);
}

#[test]
fn a_model_of_other_words_needs_its_own_tokenizer() {
    let error = PickScore::load(&fixture("clip/exact"), Dtype::F32, &Device::Cpu).err().unwrap().to_string();
    let want =
        "tests/fixtures/clip/exact: no tokenizer.json or vocab.json there, and the model's 64 tokens are not the 49408";
    assert!(error.contains(want), "{error}");
}
