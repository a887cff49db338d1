//! The format for rewards of one's own. `tools/reward_server.py` is a server of 40 lines that speaks it.
//!
//! `GET URL/health` answers with status 200 once the server can judge. `POST URL/score` asks about at most 64 pictures:
//!
//! ```json
//! {"prompts": ["a red circle"], "images": ["<PNG in base64>"],
//!  "records": [{"prompt": "a red circle", "tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}],
//!  "model": "<the config's key, or null>"}
//! ```
//!
//! `records` has what the prompt file says of each prompt in GenEval's form. The answer has a number for every picture, in the same
//! order, and if there is more to report, lists of as many numbers or nulls by name:
//!
//! ```json
//! {"scores": [0.75], "extra": {"accuracy": [1.0]}}
//! ```
//!
//! Any status but 200 is a failure; what `error` in a JSON body says, or the body itself, is shown.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{numbers, parse, record};
use crate::data::Prompt;
use crate::io::image::{RgbImage, png};
use crate::rewards::Score;

/// Pictures and the prompts they were made for.
pub struct Question<'a> {
    /// The pictures.
    pub pictures: &'a [RgbImage],
    /// One for each.
    pub prompts: &'a [&'a Prompt],
    /// What the config says of a model.
    pub model: Option<&'a str>,
}

/// Pictures as PNG files in base64.
pub(super) fn encoded(pictures: &[RgbImage]) -> Result<Vec<String>> {
    pictures.iter().map(|picture| Ok(STANDARD.encode(png(picture)?))).collect()
}

impl super::server::Question for Question<'_> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, first: usize, count: usize) -> Result<Vec<u8>> {
        let of = first..first + count;
        let prompts = &self.prompts[of.clone()];
        let body = json!({
            "prompts": prompts.iter().map(|p| &p.text).collect::<Vec<_>>(),
            "images": encoded(&self.pictures[of])?,
            "records": prompts.iter().map(|p| record(p)).collect::<Vec<_>>(),
            "model": self.model,
        });
        Ok(body.to_string().into_bytes())
    }

    fn read(&self, answer: &[u8], count: usize) -> Result<Vec<Score>> {
        read(answer, count)
    }
}

/// The scores in an answer about `count` pictures.
///
/// # Errors
/// Says what is missing or wrong.
pub fn read(answer: &[u8], count: usize) -> Result<Vec<Score>> {
    let answer = parse(answer)?;
    let mut scores: Vec<Score> = numbers(&answer["scores"], "scores")?.into_iter().map(Score::of).collect();
    if let Some(extra) = answer.get("extra").filter(|extra| !extra.is_null()) {
        let extra = extra.as_object().context("answered with an 'extra' that is no object")?;
        for (name, values) in extra {
            let values = values.as_array().with_context(|| format!("answered without a list 'extra.{name}'"))?;
            if values.len() != count {
                bail!("answered with {} of 'extra.{name}' for {count} pictures", values.len());
            }
            for (score, value) in scores.iter_mut().zip(values).filter(|(_, value)| !value.is_null()) {
                let value = value.as_f64().with_context(|| format!("answered with {value} in 'extra.{name}'"))?;
                score.extra.insert(name.clone(), value);
            }
        }
    }
    Ok(scores)
}
