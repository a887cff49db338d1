use super::*;
use crate::data::Prompt;

/// Gives image `i` the value `base + i`.
struct Counting(&'static str, f64);

impl Reward for Counting {
    fn name(&self) -> &str {
        self.0
    }

    fn score(&self, images: &[RgbImage], _: &[&Prompt]) -> Result<Vec<Score>> {
        Ok((0..images.len()).map(|i| Score::of(self.1 + i as f64)).collect())
    }
}

fn sum(terms: &[(&'static str, f64, f64)]) -> Result<WeightedSum> {
    WeightedSum::new(terms.iter().map(|(n, base, w)| (Box::new(Counting(n, *base)) as Box<dyn Reward>, *w)).collect())
}

fn score(sum: &WeightedSum, count: usize) -> Result<Scores> {
    let prompt = Prompt { text: "a".into(), tag: None, include: vec![], exclude: vec![], line: 1 };
    sum.score(&vec![RgbImage { width: 1, height: 1, data: vec![0; 3] }; count], &vec![&prompt; count])
}

#[test]
fn the_sum_is_weighted_and_the_parts_are_not() {
    let scores = score(&sum(&[("z", 10.0, 0.5), ("a", 1.0, -2.0), ("m", 7.0, 0.0)]).unwrap(), 2).unwrap();
    assert_eq!(scores.avg, [3.0, 1.5]);
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
    let error = |name, model: Option<&str>, detector: Option<&str>| {
        let options = Options { model: model.map(Into::into), detector: detector.map(Into::into) };
        build(name, &options).err().unwrap().to_string()
    };
    assert!(error("genval", None, None).ends_with("did you mean 'geneval'?"));
    assert!(error("geneval", None, Some("shape")).ends_with("did you mean 'shapes'?"));
    assert!(error("geneval", Some("x"), None).contains("reward_models.geneval: x is not wanted"));
    assert!(error("jpeg_compressibility", None, Some("shapes")).contains("for geneval only"));
    assert!(error("pickscore", None, None).contains("reward_models.pickscore: missing"));
    assert!(error("pickscore", Some("/nowhere"), None).contains("no such folder: /nowhere"));
}

#[test]
fn every_name_builds_the_reward_of_that_name() {
    for name in NAMES.iter().filter(|n| **n != "pickscore") {
        assert_eq!(build(name, &Options::default()).unwrap().name(), *name);
    }
}
