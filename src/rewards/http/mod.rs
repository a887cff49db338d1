//! Rewards that another program judges, over HTTP: custom ones in one JSON format, those of Flow-Factory, the pickle servers of
//! ddpo-pytorch's descendants (flow_grpo, AWM, RSM), and models that look at pictures behind an endpoint like OpenAI's.
//!
//! A score that does not come is never 0: the run stops with its state saved, or does without the group, as `on_failure` says.

pub mod flow_factory;
pub mod json;
pub mod pickle;
mod server;
pub mod vlm;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{Images, Key, Kind, Options, Reward, Score};
use crate::data::Prompt;
use crate::device::Device;
use crate::io::http::check_url;
use crate::io::short;

pub use server::{Server, check};

/// What happens to pictures that have no score after all tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The run stops, its state saved.
    Abort,
    /// Their groups are left out of the update.
    SkipGroup,
}

const ABORT: &str = "abort";
const SKIP_GROUP: &str = "skip_group";

/// Where a server is and how it is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it begins: paths such as `/health` are put behind.
    pub url: String,
    /// Seconds that one request may take.
    pub timeout: f64,
    /// How often a request is tried again.
    pub retries: u32,
    /// Requests under way at the same time.
    pub concurrency: usize,
    /// What happens where all tries fail.
    pub on_failure: OnFailure,
}

/// The keys that say where a server is and how patiently it is asked: a run that is resumed may say otherwise.
pub const FREE: [&str; 5] = ["url", "timeout", "retries", "concurrency", "on_failure"];

const TIMEOUT: Key = Key { name: "timeout", kind: Kind::Number { default: 120.0, least: 0.01, most: 86400.0 } };
const RETRIES: Key = Key { name: "retries", kind: Kind::Whole { default: 5, least: 0, most: 1000 } };

/// The key `concurrency`.
const fn concurrency(default: usize) -> Key {
    Key { name: "concurrency", kind: Kind::Whole { default, least: 1, most: 1024 } }
}

/// A key that holds a text.
const fn text(name: &'static str, what: &'static str, optional: bool) -> Key {
    Key { name, kind: Kind::Text { what, optional } }
}

impl Settings {
    /// What resolved `options` of the reward `reward` say.
    ///
    /// # Errors
    /// If the address is none.
    fn of(options: &Options, reward: &str, default_url: &str) -> Result<Self> {
        let url = options.text("url").unwrap_or(default_url).to_string();
        check_url(&url).with_context(|| format!("rewards.{reward}.url"))?;
        Ok(Self {
            url,
            timeout: options.number("timeout"),
            retries: options.whole("retries") as u32,
            concurrency: options.whole("concurrency"),
            on_failure: if options.choice("on_failure") == ABORT { OnFailure::Abort } else { OnFailure::SkipGroup },
        })
    }
}

/// How pictures are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// This program's own: see [`mod@json`].
    Json,
    /// That of Flow-Factory's remote rewards: see [`flow_factory`].
    FlowFactory,
    /// That of ddpo-pytorch's LLaVA server and its descendants: see [`pickle`].
    Pickle,
}

/// What `[rewards.http]` can say.
pub const KEYS: &[Key] = &[
    text("url", "where the reward's server begins, such as http://127.0.0.1:8000", false),
    Key::choice("protocol", &["json", "flow_factory", "pickle"]),
    text("model", "what the server is told of a model", true),
    TIMEOUT,
    RETRIES,
    concurrency(1),
    Key::choice("on_failure", &[ABORT, SKIP_GROUP]),
];

/// A reward that a server of one's own judges.
pub struct Http {
    server: Server,
    protocol: Protocol,
    /// What the server is told of the model it is to use.
    model: Option<String>,
    is_plan: bool,
}

impl Http {
    /// The reward that resolved options describe.
    ///
    /// # Errors
    /// As [`Http::new`]; also if the address is none.
    pub(super) fn build(options: &Options, device: &Device) -> Result<Self> {
        let protocol = match options.choice("protocol") {
            "json" => Protocol::Json,
            "flow_factory" => Protocol::FlowFactory,
            _ => Protocol::Pickle,
        };
        let model = options.text("model").map(str::to_string);
        Self::new(Settings::of(options, "http", "")?, protocol, model, device).context("reward http")
    }

    /// The reward of the server that `settings` name, which must be there unless `device` is only planned for.
    ///
    /// # Errors
    /// [`Unavailable`](super::Unavailable) if it is not there.
    pub fn new(settings: Settings, protocol: Protocol, model: Option<String>, device: &Device) -> Result<Self> {
        let this = Self { server: Server::new(settings, None), protocol, model, is_plan: device.is_plan() };
        if !this.is_plan {
            match protocol {
                Protocol::Json | Protocol::FlowFactory => this.server.check("/health", |_| false)?,
                // They know no path but this one, and no method but POST: that something answers is all that can be known.
                Protocol::Pickle => this.server.check("/", |_| true)?,
            };
        }
        Ok(this)
    }
}

impl Reward for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    fn score(&self, images: &Images, prompts: &[&Prompt]) -> Result<Vec<Score>> {
        if self.is_plan {
            return Ok(vec![Score::default(); images.len()]);
        }
        let (pictures, count) = (images.pictures(), images.len());
        match self.protocol {
            Protocol::Json => {
                let question = json::Question { pictures, prompts, model: self.model.as_deref() };
                self.server.score("/score", count, MOST, &question)
            }
            Protocol::FlowFactory => {
                self.server.score("/compute", count, MOST, &flow_factory::Question { pictures, prompts })
            }
            Protocol::Pickle => self.server.score("/", count, MOST, &pickle::Question { pictures, prompts }),
        }
    }
}

/// Most pictures in a request, as in the reference programs.
const MOST: usize = 64;

/// The record of `prompt` in GenEval's form, as a line of a `.jsonl` file has it.
pub fn record(prompt: &Prompt) -> Value {
    let clause = |c: &crate::data::Clause| {
        let mut clause = Map::from_iter([("class".into(), json!(c.class)), ("count".into(), json!(c.count))]);
        clause.extend(c.color.map(|color| ("color".into(), json!(color.name()))));
        clause.extend(c.position.map(|(relation, of)| ("position".into(), json!([relation.name(), of]))));
        Value::Object(clause)
    };
    let mut record = Map::new();
    record.extend(prompt.tag.as_ref().map(|tag| ("tag".to_string(), json!(tag))));
    if !prompt.include.is_empty() {
        record.insert("include".into(), prompt.include.iter().map(clause).collect());
    }
    if !prompt.exclude.is_empty() {
        let exclude = prompt.exclude.iter().map(|e| json!({ "class": e.class, "count": e.count }));
        record.insert("exclude".into(), exclude.collect());
    }
    record.insert("prompt".into(), json!(prompt.text));
    Value::Object(record)
}

/// The scores that a JSON list of numbers holds; `what` is its name in errors.
fn numbers(value: &Value, what: &str) -> Result<Vec<f64>> {
    let Some(list) = value.as_array() else { bail!("answered without a list '{what}'") };
    let number = |(i, value): (usize, &Value)| match value.as_f64() {
        Some(number) => Ok(number),
        None => bail!("answered with {what}[{i}] = {}, expected a number", short(&value.to_string())),
    };
    list.iter().enumerate().map(number).collect()
}

/// The JSON in `answer`.
fn parse(answer: &[u8]) -> Result<Value> {
    // JSON has no NaN, though Python writes it.
    serde_json::from_slice(answer).map_err(|e| anyhow::anyhow!("answered what is not JSON ({e})"))
}
