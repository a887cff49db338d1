//! GenEval (Ghosh et al. 2023): are the objects a prompt asks for in the picture, in the right number, colour and
//! place? [`rules`] decides, over what a [`Detector`] saw.

pub mod rules;
mod shapes;
#[cfg(test)]
mod tests;

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::{Images, Key, Options, Reward, Score};
use crate::data::{Color, Prompt, PromptSet};
use crate::io::did_you_mean;
use crate::io::image::RgbImage;

pub use shapes::Shapes;

/// One object seen in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// One of the detector's classes.
    pub class: String,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// Left, top, right, bottom, in pixels; right and bottom are exclusive.
    pub bounds: [f64; 4],
    /// Its colour, if it is clearly one of GenEval's.
    pub color: Option<Color>,
}

/// Finds objects and tells their colours.
pub trait Detector: Send + Sync {
    /// The classes it knows.
    fn classes(&self) -> &[&str];

    /// The objects in `image`, also those it is little sure of.
    fn detect(&self, image: &RgbImage) -> Vec<Detection>;
}

/// What its table can say.
pub(super) const KEYS: &[Key] = &[Key::choice("detector", &["shapes"])];

/// The reward: how nearly the picture shows what the prompt's record asks for.
pub struct GenEval {
    detector: Box<dyn Detector>,
}

impl GenEval {
    /// The reward over what `detector` sees.
    pub fn new(detector: Box<dyn Detector>) -> Self {
        Self { detector }
    }

    /// The reward for `options`.
    pub(super) fn build(options: &Options) -> Self {
        match options.choice("detector") {
            "shapes" => Self::new(Box::new(Shapes)),
            other => unreachable!("'{other}' was checked against the choices"),
        }
    }

    fn judgeable(&self, prompt: &Prompt) -> Result<()> {
        if prompt.include.is_empty() {
            bail!("geneval needs key 'include', what the picture must show, and the prompt has none");
        }
        let named = prompt.include.iter().map(|c| &c.class).chain(prompt.exclude.iter().map(|e| &e.class));
        for class in named {
            let known = self.detector.classes();
            if !known.contains(&class.as_str()) {
                let hint = did_you_mean(class, known.iter().copied());
                bail!("class '{class}' is not one of the detector's ({}){hint}", known.join(", "));
            }
        }
        Ok(())
    }
}

impl Reward for GenEval {
    fn name(&self) -> &'static str {
        "geneval"
    }

    fn check(&self, prompts: &PromptSet) -> Result<()> {
        prompts.check(|p| self.judgeable(p))
    }

    /// The value is the dense score; `strict_accuracy` and `accuracy` (what the benchmark counts) stand beside it, each
    /// also as `<tag>_..`.
    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        let judge = |(image, prompt): (&RgbImage, &&Prompt)| {
            self.judgeable(prompt)?;
            let verdict = rules::judge(&self.detector.detect(image), prompt);
            let mut score = Score::of(verdict.dense);
            for (name, yes) in [("strict_accuracy", verdict.strict), ("accuracy", verdict.correct)] {
                let value = f64::from(u8::from(yes));
                score.extra.insert(name.to_string(), value);
                if let Some(tag) = &prompt.tag {
                    score.extra.insert(format!("{tag}_{name}"), value);
                }
            }
            Ok(score)
        };
        images.pictures().par_iter().zip(prompts).map(judge).collect()
    }
}
