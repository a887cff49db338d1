use std::path::Path;

use super::*;
use crate::data::Prompt;
use crate::io::image::RgbImage;
use crate::ops::testing::random;

/// Gives image `i` the value `base + i`.
struct Counting(&'static str, f64);

impl Reward for Counting {
    fn name(&self) -> &'static str {
        self.0
    }

    fn score(&self, images: &Images, _: &[&Prompt]) -> Result<Vec<Score>> {
        Ok((0..images.len()).map(|i| Score::of(self.1 + i as f64)).collect())
    }
}

fn sum(terms: &[(&'static str, f64, f64)]) -> Result<WeightedSum> {
    WeightedSum::new(terms.iter().map(|(n, base, w)| (Box::new(Counting(n, *base)) as Box<dyn Reward>, *w)).collect())
}

fn score(sum: &WeightedSum, count: usize) -> Result<Scores> {
    let prompt = Prompt { text: "a".into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    let picture = RgbImage { width: 1, height: 1, data: vec![0; 3] };
    sum.score(&Images::from_pictures(vec![picture; count], &Device::Cpu), &vec![&prompt; count])
}

#[test]
fn the_sum_is_weighted_and_the_parts_are_not() {
    let scores = score(&sum(&[("z", 10.0, 0.5), ("a", 1.0, -2.0), ("m", 7.0, 0.0)]).unwrap(), 2).unwrap();
    assert_eq!(scores.weighted, [3.0, 1.5]);
    let parts: Vec<_> = scores.rewards.iter().map(|(n, s)| (n.as_str(), s[0].value, s[1].value)).collect();
    assert_eq!(parts, [("z", 10.0, 11.0), ("a", 1.0, 2.0), ("m", 7.0, 8.0)]);
}

#[test]
fn mistakes_are_named() {
    let error = |r: Result<Scores>| format!("{:#}", r.unwrap_err());
    assert!(error(score(&sum(&[("a", f64::NAN, 0.0)]).unwrap(), 1)).contains("reward a: NaN for the prompt 'a'"));
    let error = |r: Result<WeightedSum>| r.err().unwrap().to_string();
    assert!(error(sum(&[])).contains("expected at least one of geneval,"));
    assert!(error(sum(&[("a", 0.0, f64::INFINITY)])).contains("rewards.a: weight is inf"));
    assert!(error(sum(&[("a", 0.0, 1.0), ("a", 0.0, 1.0)])).contains("rewards.a: given twice"));
    let error = |name, key: &str, value: &str| {
        let options = Options::of_path(key, Path::new(value));
        resolve(name, options).err().unwrap().to_string()
    };
    assert!(error("genval", "detector", "shapes").ends_with("did you mean 'geneval'?"));
    assert!(error("geneval", "detector", "shape").ends_with("did you mean 'shapes'?"));
    assert!(error("geneval", "modle", "x").starts_with("rewards.geneval.modle: geneval has no such key"));
    assert!(
        error("jpeg_compressibility", "detector", "shapes")
            .contains("rewards.jpeg_compressibility.detector: jpeg_compressibility has no keys but weight")
    );
    assert!(error("pickscore", "model", "/nowhere").contains("rewards.pickscore.model: there is no /nowhere"));
}

#[test]
fn every_name_builds_the_reward_of_that_name() {
    let needs = |key: &Key| matches!(key.kind, Kind::Path { optional: false, .. } | Kind::Text { optional: false, .. });
    for entry in TABLE.iter().filter(|e| !e.keys.iter().any(needs)) {
        // The one whose models can be done without.
        let said = if entry.name == "geneval" { "detector = 'shapes'" } else { "" };
        let options = toml::from_str(said).unwrap();
        // A plan needs no server.
        let is_elsewhere = entry.keys.iter().any(|key| key.name == "url");
        let device = if is_elsewhere { Device::Plan(Default::default()) } else { Device::Cpu };
        assert_eq!(build(entry.name, options, &device).unwrap().name(), entry.name);
    }
}

/// Takes the mean of all bytes.
struct Brightness;

impl Reward for Brightness {
    fn name(&self) -> &'static str {
        "brightness"
    }

    fn score(&self, images: &Images, _: &[&Prompt]) -> Result<Vec<Score>> {
        let mean = |p: &RgbImage| p.data.iter().map(|b| f64::from(*b)).sum::<f64>() / p.data.len() as f64;
        Ok(images.pictures().iter().map(|p| Score::of(mean(p))).collect())
    }
}

#[test]
fn decoded_images_and_their_files_are_the_same_pictures() {
    let decoded = Images::decoded(random(&[3, 4, 5, 3], 1));
    let pictures = decoded.pictures().to_vec();
    assert_eq!((decoded.len(), pictures[0].width, pictures[0].height), (3, 5, 4));
    let again = Images::from_pictures(pictures, &Device::Cpu);
    assert_eq!(decoded.bytes().to_raw(), again.bytes().to_raw());
    let prompt = Prompt { text: "a".into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    let scores = [decoded, again].map(|images| Brightness.score(&images, &[&prompt; 3]).unwrap());
    assert_eq!(scores[0], scores[1]);
}

#[test]
fn scores_that_come_in_batches_are_those_of_all_at_once() {
    let sum = WeightedSum::new(vec![(Box::new(Brightness), 2.0)]).unwrap();
    let images = random(&[5, 4, 5, 3], 1);
    let prompt = Prompt { text: "a".into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    let mut scoring = Scoring::new(&sum);
    for part in [0..2, 2..5] {
        let prompts = vec![&prompt; part.len()];
        scoring.batch(&Images::decoded(images.slice(part)), &prompts).unwrap();
    }
    assert_eq!(scoring.finish(5), sum.score(&Images::decoded(images), &[&prompt; 5]).unwrap());
}
