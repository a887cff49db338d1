//! The format of Flow-Factory's remote rewards (`rewards/my_reward_remote.py`): `POST URL/compute` with `prompt` and `image`, as
//! many PNG files in base64, and its other fields null; `{"rewards": [..]}` comes back, or `{"error": ".."}`.

use anyhow::{Result, bail};
use serde_json::json;

use super::json::encoded;
use super::{numbers, parse};
use crate::data::Prompt;
use crate::io::image::RgbImage;
use crate::rewards::Score;

/// Pictures and the prompts they were made for.
pub struct Question<'a> {
    /// The pictures.
    pub pictures: &'a [RgbImage],
    /// One for each.
    pub prompts: &'a [&'a Prompt],
}

impl super::server::Question for Question<'_> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn body(&self, first: usize, count: usize) -> Result<Vec<u8>> {
        let of = first..first + count;
        let body = json!({
            "prompt": self.prompts[of.clone()].iter().map(|p| &p.text).collect::<Vec<_>>(),
            "image": encoded(&self.pictures[of])?,
            "video": null,
            "condition_images": null,
            "condition_videos": null,
            "kwargs": null,
        });
        Ok(body.to_string().into_bytes())
    }

    fn read(&self, answer: &[u8], _: usize) -> Result<Vec<Score>> {
        read(answer)
    }
}

/// The scores in an answer.
///
/// # Errors
/// Says what is missing or wrong.
pub fn read(answer: &[u8]) -> Result<Vec<Score>> {
    let answer = parse(answer)?;
    if let Some(error) = answer["error"].as_str().filter(|error| !error.is_empty()) {
        bail!("answered with the error '{error}'");
    }
    Ok(numbers(&answer["rewards"], "rewards")?.into_iter().map(Score::of).collect())
}
