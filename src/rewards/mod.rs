//! What a picture is worth: one file per reward, one trait.

pub mod aesthetic;
pub mod clipscore;
pub mod deqa;
mod dtype;
pub mod geneval;
mod head;
pub mod hpsv2;
pub mod http;
pub mod imagereward;
mod images;
pub mod jpeg;
pub mod ocr;
mod opencv;
mod options;
pub mod pickscore;
pub mod preprocess;
mod similarity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::aesthetic::Aesthetic;
use self::clipscore::ClipScore;
use self::deqa::Deqa;
use self::geneval::GenEval;
use self::hpsv2::Hpsv2;
use self::http::Http;
use self::http::vlm::{self, Vlm};
use self::imagereward::ImageReward;
use self::jpeg::Jpeg;
use self::ocr::Ocr;
use self::pickscore::PickScore;
use crate::data::{Prompt, PromptSet};
use crate::device::{Device, Tensor};
use crate::io::did_you_mean;
use crate::ops::activation;
use crate::ops::affine::{self, Affine};
use crate::telemetry::Clock;

pub use dtype::Dtype;
pub use images::Images;
pub use options::{Key, Kind, Options};

/// Judges pictures. A picture's score never depends on what else is in the batch.
pub trait Reward: Send + Sync {
    /// The name it has in a config and in logs.
    fn name(&self) -> &'static str;

    /// Fails if the reward could not judge pictures for some prompt: called before anything is computed.
    ///
    /// # Errors
    /// Names file, line, and what is missing.
    fn check(&self, _prompts: &PromptSet) -> Result<()> {
        Ok(())
    }

    /// One score for each image and the prompt it was made for; the two have equal length.
    ///
    /// # Errors
    /// If an image cannot be judged at all. A bad picture is no error, it has a low score.
    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>>;

    /// As [`Reward::score`], and why each image has its score, for whoever asks: what was seen in it, as `engine score --dump`
    /// writes it. None of a reward that has nothing to show.
    ///
    /// # Errors
    /// As [`Reward::score`].
    fn explain(&self, _images: &Images, _prompts: &[&Prompt]) -> Result<Option<Vec<(Score, Value)>>> {
        Ok(None)
    }

    /// The reward as a function of pixels, if it can be differentiated.
    fn gradient(&self) -> Option<&dyn Differentiable> {
        None
    }
}

/// A reward with a gradient.
pub trait Differentiable {
    /// `d score / d pixel` of decoded images `[b, h, w, 3]` for their prompts, of the same shape.
    ///
    /// # Errors
    /// As [`Reward::score`].
    fn gradient(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor>;
}

/// What one reward says of one picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// What is optimised.
    pub value: f64,
    /// What is only reported, by name, such as `strict_accuracy`; a mean is over the pictures that have the name.
    pub extra: BTreeMap<String, f64>,
}

impl Score {
    /// A score with nothing beside it.
    pub fn of(value: f64) -> Self {
        Self { value, extra: BTreeMap::new() }
    }
}

/// A reward has no answer and nothing goes on without it: what a [`Reward`] fails with when what judges in its place stays away.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Some pictures have no score and a run may go on without them: what a [`Reward`] fails with whose config says so.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Absent {
    /// The scores that there are.
    pub scores: Vec<Option<Score>>,
    /// Why the others are not.
    pub why: String,
}

/// Several rewards added up.
pub struct WeightedSum {
    terms: Vec<(Box<dyn Reward>, f64)>,
}

/// What a [`WeightedSum`] says of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The weighted sum per image: what is optimised. (The reference programs call it `avg`.)
    pub weighted: Vec<f64>,
    /// Each reward's own scores, unweighted, in the order of the config.
    pub rewards: Vec<(String, Vec<Score>)>,
    /// Images that a reward of some weight did not judge, and why. Their scores, and the sum, are NaN.
    pub missing: BTreeMap<usize, String>,
}

impl WeightedSum {
    /// The sum of `weight · reward`. A reward of weight 0 is evaluated too, to be watched.
    ///
    /// # Errors
    /// If there is no reward, one is listed twice, or a weight is not finite.
    pub fn new(terms: Vec<(Box<dyn Reward>, f64)>) -> Result<Self> {
        if terms.is_empty() {
            bail!("rewards: none given, expected at least one of {}", names().join(", "));
        }
        for (i, (reward, weight)) in terms.iter().enumerate() {
            let name = reward.name();
            if !weight.is_finite() {
                bail!("rewards.{name}: weight is {weight}, expected a finite number");
            }
            if terms[..i].iter().any(|(r, _)| r.name() == name) {
                bail!("rewards.{name}: given twice");
            }
        }
        Ok(Self { terms })
    }

    /// What each reward that counts gave, with its weight.
    pub fn weighed(&self, scores: &Scores) -> Vec<(f64, Vec<f64>)> {
        let terms = self.terms.iter().zip(&scores.rewards).filter(|((_, weight), _)| *weight != 0.0);
        terms.map(|((_, weight), (_, scores))| (*weight, scores.iter().map(|s| s.value).collect())).collect()
    }

    /// As [`Reward::check`], for all.
    ///
    /// # Errors
    /// The first reward's that cannot judge some prompt.
    pub fn check(&self, prompts: &PromptSet) -> Result<()> {
        self.terms.iter().try_for_each(|(r, _)| r.check(prompts).with_context(|| format!("rewards.{}", r.name())))
    }

    /// Scores each image for the prompt it was made for. What is [`Absent`] is [missing](Scores::missing).
    ///
    /// # Errors
    /// Names the reward that failed, or that gave a value which is not finite.
    pub fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Scores> {
        self.timed(images, prompts, &mut Clock::start(), |reward| reward.score(images, prompts))
    }

    /// Fails unless every reward that counts has a gradient.
    ///
    /// # Errors
    /// Names the reward that has none, and those that have.
    pub fn check_gradient(&self) -> Result<()> {
        let counts = self.terms.iter().filter(|(_, weight)| *weight != 0.0);
        counts.map(|(reward, _)| reward).find(|r| r.gradient().is_none()).map_or(Ok(()), |r| no_gradient(r.name()))
    }

    /// The gradient of the weighted sum to decoded pictures `[b, h, w, 3]` for their prompts, of the same shape. Rewards of weight
    /// 0 are not differentiated.
    ///
    /// # Errors
    /// As [`WeightedSum::check_gradient`]; names the reward that failed.
    pub fn gradient(&self, images: &Tensor, prompts: &[&Prompt]) -> Result<Tensor> {
        assert_eq!(images.dim(0), prompts.len(), "one prompt for each image");
        let mut sum = images.zeros_like(images.shape());
        for (reward, weight) in self.terms.iter().filter(|(_, weight)| *weight != 0.0) {
            let name = reward.name();
            let Some(differentiable) = reward.gradient() else { return no_gradient(name) };
            let gradient = differentiable.gradient(images, prompts).with_context(|| format!("reward {name}"))?;
            let scale = *weight as f32;
            activation::add(&mut sum, &affine::forward(&gradient, Affine { scale, ..Affine::default() }));
        }
        Ok(sum)
    }

    /// The same of what `judge` says for each reward; what each takes is a lap of `clock`.
    fn timed(
        &self,
        images: &Images,
        prompts: &[&Prompt],
        clock: &mut Clock,
        mut judge: impl FnMut(&dyn Reward) -> Result<Vec<Score>>,
    ) -> Result<Scores> {
        assert_eq!(images.len(), prompts.len(), "one prompt for each image");
        let mut weighted = vec![0.0; images.len()];
        let (mut rewards, mut missing) = (Vec::new(), BTreeMap::new());
        for (reward, weight) in &self.terms {
            let name = reward.name();
            let (scores, why) = match judge(reward.as_ref()) {
                Ok(scores) => (scores.into_iter().map(Some).collect(), String::new()),
                Err(e) => match e.downcast::<Absent>() {
                    Ok(Absent { scores, why }) => (scores, format!("reward {name}: {why}")),
                    Err(e) => return Err(e.context(format!("reward {name}"))),
                },
            };
            assert_eq!(scores.len(), images.len(), "one score for each image");
            for (i, score) in scores.iter().enumerate() {
                match score {
                    Some(score) if !score.value.is_finite() => {
                        bail!("reward {name}: {} for the prompt '{}'", score.value, prompts[i].text)
                    }
                    Some(score) => weighted[i] += weight * score.value,
                    // What is only watched holds nothing up.
                    None if *weight == 0.0 => {}
                    None => {
                        weighted[i] = f64::NAN;
                        missing.entry(i).or_insert_with(|| why.clone());
                    }
                }
            }
            let or_none = |score: Option<Score>| score.unwrap_or_else(|| Score::of(f64::NAN));
            rewards.push((name.to_string(), scores.into_iter().map(or_none).collect()));
            clock.lap(name);
        }
        Ok(Scores { weighted, rewards, missing })
    }
}

/// The rewards that have a gradient.
pub const DIFFERENTIABLE: [&str; 4] = ["aesthetic", "clipscore", "hpsv2", "pickscore"];

/// Fails because the reward called `name` has no gradient.
fn no_gradient<T>(name: &str) -> Result<T> {
    bail!("rewards.{name}: it has no gradient; those that have one are {}", DIFFERENTIABLE.join(", "))
}

impl Scores {
    /// No scores yet, of the rewards of `sum`.
    fn empty(sum: &WeightedSum) -> Self {
        let rewards = sum.terms.iter().map(|(r, _)| (r.name().to_string(), Vec::new())).collect();
        Self { weighted: Vec::new(), rewards, missing: BTreeMap::new() }
    }

    /// Those of `images` alone, in that order.
    pub fn of(&self, images: &[usize]) -> Self {
        let pick =
            |(name, scores): &(String, Vec<Score>)| (name.clone(), images.iter().map(|i| scores[*i].clone()).collect());
        let missing = images.iter().enumerate().filter_map(|(at, i)| Some((at, self.missing.get(i)?.clone())));
        Self {
            weighted: images.iter().map(|i| self.weighted[*i]).collect(),
            rewards: self.rewards.iter().map(pick).collect(),
            missing: missing.collect(),
        }
    }

    /// Adds those of further images.
    fn extend(&mut self, more: Self) {
        let before = self.weighted.len();
        self.missing.extend(more.missing.into_iter().map(|(i, why)| (before + i, why)));
        self.weighted.extend(more.weighted);
        for ((_, all), (_, more)) in self.rewards.iter_mut().zip(more.rewards) {
            all.extend(more);
        }
    }
}

/// Scores of images that come batch by batch.
pub struct Scoring<'a> {
    sum: &'a WeightedSum,
    scores: Scores,
    seconds: BTreeMap<&'static str, f64>,
}

impl<'a> Scoring<'a> {
    /// Before the first batch.
    pub fn new(sum: &'a WeightedSum) -> Self {
        Self { sum, scores: Scores::empty(sum), seconds: BTreeMap::new() }
    }

    /// Scores a batch.
    ///
    /// # Errors
    /// As [`WeightedSum::score`].
    pub fn batch(&mut self, images: &Images, prompts: &[&Prompt]) -> Result<()> {
        self.judged(images, prompts, |reward| reward.score(images, prompts))
    }

    /// Scores a batch. Returns what each reward that has anything to show saw in the images, by name.
    ///
    /// # Errors
    /// As [`WeightedSum::score`].
    pub fn explained(&mut self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<(&'static str, Vec<Value>)>> {
        let mut shown = Vec::new();
        self.judged(images, prompts, |reward| {
            let Some(seen) = reward.explain(images, prompts)? else { return reward.score(images, prompts) };
            let (scores, seen) = seen.into_iter().unzip();
            shown.push((reward.name(), seen));
            Ok(scores)
        })?;
        Ok(shown)
    }

    fn judged(
        &mut self,
        images: &Images,
        prompts: &[&Prompt],
        judge: impl FnMut(&dyn Reward) -> Result<Vec<Score>>,
    ) -> Result<()> {
        let mut clock = Clock::start();
        self.scores.extend(self.sum.timed(images, prompts, &mut clock, judge)?);
        for (name, seconds) in clock.seconds() {
            *self.seconds.entry(name).or_default() += seconds;
        }
        Ok(())
    }

    /// What each reward has taken so far.
    pub fn seconds(&self) -> BTreeMap<&'static str, f64> {
        self.seconds.clone()
    }

    /// The scores of all `count` images; those that a plan left out are zero.
    pub fn finish(mut self, count: usize) -> Scores {
        self.scores.weighted.resize(count, 0.0);
        self.scores.rewards.iter_mut().for_each(|(_, s)| s.resize(count, Score::default()));
        self.scores
    }
}

/// One reward there is.
pub struct Entry {
    /// Its name in configs and logs.
    pub name: &'static str,
    /// What its table can say beside `weight`.
    pub keys: &'static [Key],
    /// The reward for resolved options.
    build: fn(&Options, &Device) -> Result<Box<dyn Reward>>,
}

/// Every reward.
pub const TABLE: [Entry; 14] = [
    Entry {
        name: "geneval",
        keys: geneval::KEYS,
        build: |options, device| Ok(Box::new(GenEval::build(options, device)?)),
    },
    Entry {
        name: "pickscore",
        keys: pickscore::KEYS,
        build: |options, device| Ok(Box::new(PickScore::build(options, device)?)),
    },
    Entry { name: "ocr", keys: ocr::KEYS, build: |options, device| Ok(Box::new(Ocr::build(options, device)?)) },
    Entry {
        name: "clipscore",
        keys: clipscore::KEYS,
        build: |options, device| Ok(Box::new(ClipScore::build(options, device)?)),
    },
    Entry {
        name: "aesthetic",
        keys: aesthetic::KEYS,
        build: |options, device| Ok(Box::new(Aesthetic::build(options, device)?)),
    },
    Entry { name: "hpsv2", keys: hpsv2::KEYS, build: |options, device| Ok(Box::new(Hpsv2::build(options, device)?)) },
    Entry {
        name: "imagereward",
        keys: imagereward::KEYS,
        build: |options, device| Ok(Box::new(ImageReward::build(options, device)?)),
    },
    Entry { name: "deqa", keys: deqa::KEYS, build: |options, device| Ok(Box::new(Deqa::build(options, device)?)) },
    Entry { name: "jpeg_compressibility", keys: &[], build: |_, _| Ok(Box::new(Jpeg::Compressibility)) },
    Entry { name: "jpeg_incompressibility", keys: &[], build: |_, _| Ok(Box::new(Jpeg::Incompressibility)) },
    Entry {
        name: "unifiedreward",
        keys: vlm::KEYS,
        build: |options, device| Ok(Box::new(Vlm::build("unifiedreward", options, device)?)),
    },
    Entry {
        name: "qwenvl",
        keys: vlm::KEYS,
        build: |options, device| Ok(Box::new(Vlm::build("qwenvl", options, device)?)),
    },
    Entry {
        name: "vlm",
        keys: vlm::KEYS_OF_ANY,
        build: |options, device| Ok(Box::new(Vlm::build("vlm", options, device)?)),
    },
    Entry { name: "http", keys: http::KEYS, build: |options, device| Ok(Box::new(Http::build(options, device)?)) },
];

/// The names of all rewards.
pub fn names() -> Vec<&'static str> {
    TABLE.iter().map(|e| e.name).collect()
}

/// The reward called `name`, if there is one.
///
/// # Errors
/// Lists the rewards there are, and the nearest.
pub fn entry(name: &str) -> Result<&'static Entry> {
    let found = TABLE.iter().find(|e| e.name == name);
    found.with_context(|| {
        format!("rewards: no reward '{name}', expected one of {}{}", names().join(", "), did_you_mean(name, names()))
    })
}

/// The options of the reward called `name`, with its defaults. Reads no weights.
///
/// # Errors
/// As [`entry`] and [`Options::resolve`].
pub fn resolve(name: &str, options: Options) -> Result<Options> {
    options.resolve(name, entry(name)?.keys)
}

/// The reward called `name`, its model on `device`.
///
/// # Errors
/// As [`resolve`], or if its model cannot be read.
pub fn build(name: &str, options: Options, device: &Device) -> Result<Box<dyn Reward>> {
    (entry(name)?.build)(&resolve(name, options)?, device)
}
