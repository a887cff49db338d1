//! The protocol of the pickle servers that ddpo-pytorch began (flow_grpo, AWM, RSM: GenEval, DeQA, UnifiedReward, HPSv3):
//! `POST URL/` with a pickled dict, answered by another; status 500 comes with a traceback.
//!
//! One request serves them all, as each takes from the dict what it knows: `images`, JPEG files of quality 75; `prompts`;
//! `meta_datas`, GenEval's records; `only_strict`, false, so that both accuracies come back. The scores are `scores` (GenEval) or
//! `outputs`.

pub mod write;

use anyhow::{Context, Result, bail, ensure};

use self::write::Item;
use super::record;
use crate::data::Prompt;
use crate::io::image::RgbImage;
use crate::io::pickle::{Pickle, Value};
use crate::rewards::{Score, jpeg};

/// The quality Pillow writes JPEG files in if none is asked for, as the clients of these servers do.
const QUALITY: f32 = 75.0;

/// Pictures and the prompts they were made for.
pub struct Question<'a> {
    /// The pictures.
    pub pictures: &'a [RgbImage],
    /// One for each.
    pub prompts: &'a [&'a Prompt],
}

impl super::server::Question for Question<'_> {
    const CONTENT_TYPE: &'static str = "application/octet-stream";

    fn body(&self, first: usize, count: usize) -> Result<Vec<u8>> {
        let (pictures, prompts) = (&self.pictures[first..first + count], &self.prompts[first..first + count]);
        let images = pictures.iter().map(|picture| Ok(Item::Bytes(jpeg::encode(picture, QUALITY)?)));
        Ok(write::dumps(&Item::Dict(vec![
            ("images".into(), Item::List(images.collect::<Result<_>>()?)),
            ("prompts".into(), Item::List(prompts.iter().map(|p| Item::Str(p.text.clone())).collect())),
            ("meta_datas".into(), Item::List(prompts.iter().map(|p| Item::from(&record(p))).collect())),
            ("only_strict".into(), Item::Bool(false)),
        ])))
    }

    fn read(&self, answer: &[u8], count: usize) -> Result<Vec<Score>> {
        read(answer, count)
    }
}

/// What GenEval's server reports beside the scores, and what it is called here.
const EXTRA: [(&str, &str); 2] = [("rewards", "accuracy"), ("strict_rewards", "strict_accuracy")];

/// The scores in an answer about `count` pictures.
///
/// # Errors
/// Says what is missing or wrong.
pub fn read(answer: &[u8], count: usize) -> Result<Vec<Score>> {
    let (pickle, _) = Pickle::read(answer).context("answered what is no pickle")?;
    let root = pickle.root();
    ensure!(root.entries().is_some(), "answered with {}, expected a dict", root.describe());
    let Some(name) = ["scores", "outputs"].into_iter().find(|name| root.get(name).is_some()) else {
        bail!("answered with a dict that has neither 'scores' nor 'outputs'");
    };
    let mut scores: Vec<Score> = numbers(root, name)?.into_iter().map(Score::of).collect();
    for (theirs, ours) in EXTRA.into_iter().filter(|(theirs, _)| name == "scores" && root.get(theirs).is_some()) {
        let values = numbers(root, theirs)?;
        ensure!(values.len() == count, "answered with {} of '{theirs}' for {count} pictures", values.len());
        for (score, value) in scores.iter_mut().zip(values) {
            score.extra.insert(ours.into(), value);
        }
    }
    Ok(scores)
}

/// The numbers in the list that `dict` has at `name`; truths are 0 and 1.
fn numbers(dict: Value, name: &str) -> Result<Vec<f64>> {
    let value = dict.get(name).expect("just found");
    let Some(items) = value.items() else { bail!("answered with {} as '{name}', expected a list", value.describe()) };
    let number = |(i, item): (usize, Value)| {
        let number = item.as_f64().or(item.as_bool().map(|yes| f64::from(u8::from(yes))));
        number.with_context(|| format!("answered with {name}[{i}] {}, expected a number", item.describe()))
    };
    items.enumerate().map(number).collect()
}
