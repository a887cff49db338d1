//! Detections that somebody else has made, judged.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{Detection, Score, scored};
use crate::data::{Color, Prompt, PromptSet};
use crate::io::read_json;

/// What was seen in one picture.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The record of the prompt, in the GenEval form.
    metadata: Option<Value>,
    detections: Vec<Given>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    class: String,
    score: f64,
    #[serde(rename = "box")]
    bounds: [f64; 4],
    color: Option<String>,
}

/// Judges the detections in the file at `path`, a list of `{"metadata", "detections": [{"class", "score", "box", "color"}]}`, each by
/// its own metadata or, if there are `prompts`, by one of these, in their order.
///
/// # Errors
/// Names the file, and the entry, counted from 1, that is not as expected; or says that there are more or fewer entries than
/// prompts.
pub fn judge(path: &Path, prompts: Option<&PromptSet>) -> Result<Vec<(Prompt, Score)>> {
    let shown = path.display();
    let entries: Vec<Value> = read_json(path)?;
    if let Some(set) = prompts {
        let (found, needed) = (entries.len(), set.prompts.len());
        ensure!(found == needed, "{shown}: {found} entries for the {needed} prompts of {}", set.path.display());
    }
    let one = |(i, value): (usize, &Value)| {
        let of_set = prompts.map(|set| &set.prompts[i]);
        judge_one(value, of_set).map_err(|e| anyhow!("{shown}: entry {}: {e:#}", i + 1))
    };
    entries.iter().enumerate().map(one).collect()
}

fn judge_one(value: &Value, prompt: Option<&Prompt>) -> Result<(Prompt, Score)> {
    let Entry { metadata, detections } = Entry::deserialize(value)?;
    let prompt = match (prompt, metadata) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(record)) => Prompt::of_record(&record).context("metadata")?,
        (None, None) => return Err(anyhow!("no key 'metadata', and no prompts are given")),
    };
    ensure!(!prompt.include.is_empty(), "its prompt has no key 'include', what the picture must show");
    let seen = |(i, given): (usize, Given)| {
        let color = given
            .color
            .as_deref()
            .map(Color::parse)
            .transpose()
            .map_err(|e| anyhow!("detections[{i}].color is {e}"))?;
        let numbers = given.bounds.iter().chain([&given.score]);
        ensure!(numbers.clone().all(|v| v.is_finite()), "detections[{i}] holds a number that is not finite");
        Ok(Detection { class: given.class, score: given.score, bounds: given.bounds, color })
    };
    let seen: Vec<Detection> = detections.into_iter().enumerate().map(seen).collect::<Result<_>>()?;
    let score = scored(&seen, &prompt);
    Ok((prompt, score))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str, prompts: Option<&str>) -> Result<Vec<f64>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.json");
        std::fs::write(&path, text).unwrap();
        let set = prompts.map(|lines| {
            let path = folder.path().join("p.jsonl");
            std::fs::write(&path, lines).unwrap();
            PromptSet::load(&path).unwrap()
        });
        Ok(judge(&path, set.as_ref())?.iter().map(|(_, score)| score.value).collect())
    }

    const DOG: &str = r#"{"class": "dog", "score": 0.9, "box": [0, 0, 5, 5], "color": "red"}"#;
    const RECORD: &str =
        r#"{"prompt": "a red dog", "tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}"#;

    #[test]
    fn detections_are_judged_by_their_own_metadata_or_by_the_prompts() {
        let other = DOG.replace("\"red\"", "null");
        let own = format!(
            r#"[{{"metadata": {RECORD}, "detections": [{DOG}]}}, {{"metadata": {RECORD}, "detections": [{other}]}}]"#
        );
        assert_eq!(judged(&own, None).unwrap(), [1.0, 0.5]);
        let bare = format!(r#"[{{"detections": [{DOG}]}}, {{"detections": []}}]"#);
        assert_eq!(judged(&bare, Some(&format!("{RECORD}\n{RECORD}"))).unwrap(), [1.0, 0.0]);
        let few = judged(&bare, Some(RECORD)).unwrap_err().to_string();
        assert!(few.contains("d.json: 2 entries for the 1 prompts of"), "{few}");
    }

    #[test]
    fn what_is_not_as_expected_is_named_by_file_and_entry() {
        for (text, want) in [
            (format!(r#"[{{"detections": [{DOG}]}}]"#), "d.json: entry 1: no key 'metadata', and no prompts are given"),
            (
                format!(r#"[{{"metadata": {RECORD}, "detections": [{}]}}]"#, DOG.replace("red", "rad")),
                "entry 1: detections[0].color is 'rad', expected one of",
            ),
            (format!(r#"[{{"metadata": {RECORD}, "detektions": []}}]"#), "entry 1: unknown field `detektions`"),
            (
                format!(r#"[{{"metadata": {}, "detections": []}}]"#, RECORD.replace("include", "inclde")),
                "entry 1: metadata: unknown key 'inclde'; did you mean 'include'?",
            ),
            (
                format!(r#"[{{"metadata": {RECORD}, "detections": [{}]}}]"#, DOG.replace("[0, 0, 5, 5]", "[0, 0, 5]")),
                "entry 1: invalid length 3",
            ),
            (r#"[{"metadata": {"prompt": "x"}, "detections": []}]"#.into(), "has no key 'include'"),
        ] {
            let message = judged(&text, None).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }
}
