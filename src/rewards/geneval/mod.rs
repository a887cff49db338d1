//! GenEval (Ghosh et al. 2023): are the objects a prompt asks for in the picture, in the right number, colour and
//! place? [`rules`] decides, over what a [`Detector`] saw.

pub mod given;
mod mask2former;
pub mod rules;
mod shapes;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::mask2former::Photographs;
use super::options::Kind;
use super::similarity::OPENAI_CLIP_PLACE;
use super::{Dtype, Images, Key, Options, Reward, Score};
use crate::data::{Color, Prompt, PromptSet};
use crate::device::Device;
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

impl Detection {
    fn to_json(&self) -> Value {
        json!({"class": self.class, "score": self.score, "box": self.bounds, "color": self.color.map(Color::name)})
    }
}

/// What is asked about a picture. A detector may leave out what is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// Objects it is at most this sure of are of no interest.
    pub least: f64,
    /// The classes of the objects whose colours are; of none of them, of all.
    pub colored: Option<Vec<String>>,
}

impl Look {
    /// What `prompt` is judged by.
    fn of(prompt: &Prompt) -> Self {
        let colored = prompt.include.iter().filter(|clause| clause.color.is_some());
        Self { least: rules::THRESHOLD, colored: Some(colored.map(|clause| clause.class.clone()).collect()) }
    }

    /// Everything.
    fn at_all() -> Self {
        Self { least: 0.0, colored: None }
    }

    /// Whether the colour of an object is asked for. What no rule looks at has none.
    fn wants_color(&self, class: &str, score: f64) -> bool {
        score > rules::THRESHOLD && self.colored.as_ref().is_none_or(|colored| colored.iter().any(|c| c == class))
    }
}

/// Finds objects and tells their colours.
pub trait Detector: Send + Sync {
    /// The classes it knows.
    fn classes(&self) -> &[&str];

    /// The objects in each of `images`, of which the same number of `looks` ask.
    ///
    /// # Errors
    /// If an image cannot be looked at.
    fn detect(&self, images: &[RgbImage], looks: &[Look]) -> Result<Vec<Vec<Detection>>>;
}

/// What its table can say.
pub(super) const KEYS: &[Key] = &[
    Key::choice("detector", &["mask2former", "shapes"]),
    Key { name: "model", kind: Kind::Path { what: mask2former::MODEL, places: &mask2former::PLACES, optional: true } },
    Key { name: "clip", kind: Kind::Path { what: mask2former::CLIP, places: &[OPENAI_CLIP_PLACE], optional: true } },
    Key::choice("channels", &["rgb", "bgr"]),
    Key::choice("color_activation", &["quick_gelu", "gelu"]),
    Key { name: "jpeg_quality", kind: Kind::Whole { default: 0, least: 0, most: 100 } },
    Dtype::KEY,
];

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
    ///
    /// # Errors
    /// Names the model that is missing or not what was expected.
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        Ok(match options.choice("detector") {
            "shapes" => Self::new(Box::new(Shapes)),
            "mask2former" => Self::new(Box::new(Photographs::build(options, device)?)),
            other => unreachable!("'{other}' was checked against the choices"),
        })
    }

    /// What the detector sees in the images, by a look at each, if all can be judged.
    fn see(&self, images: &Images, prompts: &[&Prompt], looks: Vec<Look>) -> Result<Vec<Vec<Detection>>> {
        prompts
            .iter()
            .try_for_each(|prompt| self.judgeable(prompt).with_context(|| format!("prompt '{}'", prompt.text)))?;
        self.detector.detect(images.pictures(), &looks)
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
                let some = known[..known.len().min(10)].join(", ");
                let more = known.len().checked_sub(10).filter(|n| *n > 0).map(|n| format!(" and {n} more"));
                bail!("class '{class}' is not one of the detector's ({some}{}){hint}", more.unwrap_or_default());
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
        let looks = prompts.iter().map(|prompt| Look::of(prompt)).collect();
        let seen = self.see(images, prompts, looks)?;
        Ok(seen.iter().zip(prompts).map(|(seen, prompt)| scored(seen, prompt)).collect())
    }

    /// What the detector saw, the surest first: `[{class, score, box, color}]`.
    fn explain(&self, images: &Images, prompts: &[&Prompt]) -> Result<Option<Vec<(Score, Value)>>> {
        let seen = self.see(images, prompts, vec![Look::at_all(); images.len()])?;
        let explain = |(mut seen, prompt): (Vec<Detection>, &&Prompt)| {
            let score = scored(&seen, prompt);
            seen.sort_by(|a, b| b.score.total_cmp(&a.score));
            (score, seen.iter().map(Detection::to_json).collect())
        };
        Ok(Some(seen.into_iter().zip(prompts).map(explain).collect()))
    }
}

/// The verdict on a picture in which these were `seen`.
fn scored(seen: &[Detection], prompt: &Prompt) -> Score {
    let verdict = rules::judge(seen, prompt);
    let mut score = Score::of(verdict.dense);
    for (name, yes) in [("strict_accuracy", verdict.strict), ("accuracy", verdict.correct)] {
        let value = f64::from(u8::from(yes));
        score.extra.insert(name.to_string(), value);
        if let Some(tag) = &prompt.tag {
            score.extra.insert(format!("{tag}_{name}"), value);
        }
    }
    score
}
