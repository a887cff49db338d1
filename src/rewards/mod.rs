//! What a picture is worth: one file per reward, one trait.

pub mod geneval;
pub mod jpeg;
pub mod pickscore;
pub mod preprocess;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::geneval::GenEval;
use self::jpeg::Jpeg;
use self::pickscore::PickScore;
use crate::data::{Prompt, PromptSet};
pub use crate::io::image::RgbImage;
use crate::io::{TensorFile, did_you_mean, require_folder};

/// Judges pictures. A picture's score never depends on what else is in the batch.
pub trait Reward: Send + Sync {
    /// The name it has in a config and in logs.
    fn name(&self) -> &str;

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
    fn score(&self, images: &[RgbImage], prompts: &[&Prompt]) -> Result<Vec<Score>>;
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

/// Several rewards added up.
pub struct WeightedSum {
    terms: Vec<(Box<dyn Reward>, f64)>,
}

/// What a [`WeightedSum`] says of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The weighted sum per image: what is optimised. (The reference programs call it `avg`.)
    pub avg: Vec<f64>,
    /// Each reward's own scores, unweighted, in the order of the config.
    pub rewards: Vec<(String, Vec<Score>)>,
}

impl WeightedSum {
    /// The sum of `weight · reward`. A reward of weight 0 is evaluated too, to be watched.
    ///
    /// # Errors
    /// If there is no reward, one is listed twice, or a weight is not finite.
    pub fn new(terms: Vec<(Box<dyn Reward>, f64)>) -> Result<Self> {
        if terms.is_empty() {
            bail!("rewards: none given, expected at least one of {}", NAMES.join(", "));
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

    /// As [`Reward::check`], for all.
    ///
    /// # Errors
    /// The first reward's that cannot judge some prompt.
    pub fn check(&self, prompts: &PromptSet) -> Result<()> {
        self.terms.iter().try_for_each(|(r, _)| r.check(prompts).with_context(|| format!("rewards.{}", r.name())))
    }

    /// Scores each image for the prompt it was made for.
    ///
    /// # Errors
    /// Names the reward that failed, or that gave a value which is not finite.
    pub fn score(&self, images: &[RgbImage], prompts: &[&Prompt]) -> Result<Scores> {
        assert_eq!(images.len(), prompts.len(), "one prompt for each image");
        let mut avg = vec![0.0; images.len()];
        let mut rewards = Vec::new();
        for (reward, weight) in &self.terms {
            let name = reward.name();
            let scores = reward.score(images, prompts).with_context(|| format!("reward {name}"))?;
            assert_eq!(scores.len(), images.len(), "one score for each image");
            for ((sum, score), prompt) in avg.iter_mut().zip(&scores).zip(prompts) {
                if !score.value.is_finite() {
                    bail!("reward {name}: {} for the prompt '{}'", score.value, prompt.text);
                }
                *sum += weight * score.value;
            }
            rewards.push((name.to_string(), scores));
        }
        Ok(Scores { avg, rewards })
    }
}

const NAMES: [&str; 4] = ["geneval", "pickscore", "jpeg_compressibility", "jpeg_incompressibility"];

/// What a config says about one reward beside its weight.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder of its model: `pickscore` has one.
    pub model: Option<PathBuf>,
    /// What finds the objects: `geneval`, for which `shapes` is the only one so far and the default.
    pub detector: Option<String>,
}

/// Fails unless there is a reward called `name` and the options are ones it takes. Reads no weights.
///
/// # Errors
/// Lists the rewards there are, and the nearest; or names the option that is missing or wrong.
pub fn check(name: &str, options: &Options) -> Result<()> {
    if !NAMES.contains(&name) {
        bail!("rewards: no reward '{name}', expected one of {}{}", NAMES.join(", "), did_you_mean(name, NAMES));
    }
    match &options.model {
        Some(folder) if name == "pickscore" => require_folder(folder, "reward_models.pickscore")?,
        Some(folder) => bail!("reward_models.{name}: {} is not wanted, {name} takes no model", folder.display()),
        None if name == "pickscore" => bail!("reward_models.pickscore: missing, expected the folder of a CLIP model"),
        None => {}
    }
    if options.detector.is_some() && name != "geneval" {
        bail!("rewards.{name}: a detector is for geneval only");
    }
    Ok(())
}

/// Bytes of the weights that the reward called `name` maps.
///
/// # Errors
/// If its model's folder holds no weights or damaged ones.
pub fn weight_bytes(name: &str, options: &Options) -> Result<u64> {
    let model = options.model.as_ref().filter(|_| name == "pickscore");
    model.map_or(Ok(0), |folder| Ok(TensorFile::open_component(folder, "model")?.bytes()))
}

/// The reward called `name`.
///
/// # Errors
/// As [`check`], or if its model cannot be read.
pub fn build(name: &str, options: &Options) -> Result<Box<dyn Reward>> {
    check(name, options)?;
    Ok(match (name, &options.model) {
        ("geneval", _) => Box::new(GenEval::new(geneval::detector(options.detector.as_deref())?)),
        ("pickscore", Some(folder)) => Box::new(PickScore::load(folder)?),
        ("jpeg_compressibility", _) => Box::new(Jpeg::Compressibility),
        _ => Box::new(Jpeg::Incompressibility),
    })
}
