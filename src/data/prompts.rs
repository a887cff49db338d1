//! Prompt sets: plain text, or the GenEval form that also says what must be seen in the picture
//! (Ghosh et al. 2023, github.com/djghosh13/geneval, `prompts/evaluation_metadata.jsonl`).

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::io::{did_you_mean, nearest, read, short};

/// One prompt and what its picture should show.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What the model is asked for.
    pub text: String,
    /// The kind of task, such as `counting`; none in a plain set.
    pub tag: Option<String>,
    /// What must be seen; empty in a plain set.
    pub include: Vec<Clause>,
    /// What must not be seen.
    pub exclude: Vec<Exclusion>,
    /// The line it was read from, counted from 1.
    pub line: usize,
}

impl Prompt {
    /// The prompt of one record in the GenEval form.
    ///
    /// # Errors
    /// As [`PromptSet::load`], without file and line.
    pub fn of_record(record: &Value) -> Result<Self> {
        of_record(record)
    }
}

/// Objects that must be seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause {
    /// The detector's name of the object.
    pub class: String,
    /// How many; at least 1.
    pub count: usize,
    /// The colour every one of them must have.
    pub color: Option<Color>,
    /// Where they must be, relative to the objects of an earlier clause (its index).
    pub position: Option<(Relation, usize)>,
}

/// Fails a picture that shows `count` or more objects of `class`.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// The detector's name of the object.
    pub class: String,
    /// The number that is too many.
    pub count: usize,
}

macro_rules! names {
    ($(#[$doc:meta])* $type:ident { $($item:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $type { $($item),+ }

        impl $type {
            /// Every value, in GenEval's order.
            pub const ALL: &[Self] = &[$(Self::$item),+];

            /// The name prompt sets use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$item => $name),+ }
            }

            /// The value of that name.
            ///
            /// # Errors
            /// Lists the names there are, and the nearest.
            pub fn parse(name: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|v| v.name() == name).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                    anyhow!("'{name}', expected one of {}{}", known.join(", "), did_you_mean(name, known.clone()))
                })
            }
        }
    };
}

names! {
    /// A colour GenEval asks for.
    Color {
        Red = "red", Orange = "orange", Yellow = "yellow", Green = "green", Blue = "blue", Purple = "purple",
        Pink = "pink", Brown = "brown", Black = "black", White = "white",
    }
}

names! {
    /// Where an object is, seen from another.
    Relation { LeftOf = "left of", RightOf = "right of", Above = "above", Below = "below" }
}

/// The prompts of one file, in its order.
#[derive(Clone, Debug)]
pub struct PromptSet {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub prompts: Vec<Prompt>,
}

impl PromptSet {
    /// Reads `.txt` (a prompt a line) or `.jsonl` (a GenEval record, or just `{"prompt": ".."}`, a line). Blank lines
    /// are skipped, and the text is stripped.
    ///
    /// # Errors
    /// Names the file, and the line where there is one: missing or empty file, another file type, malformed record,
    /// unknown key, colour or relation, a position that refers to no earlier clause.
    pub fn load(path: &Path) -> Result<Self> {
        let parse = match path.extension().and_then(|e| e.to_str()) {
            Some("txt") => plain,
            Some("jsonl") => record,
            _ => bail!("prompts {}: expected a .txt or .jsonl file", path.display()),
        };
        let text = read::text(path).context("prompts")?;
        let mut prompts = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let prompt = parse(line.trim()).map_err(|e| anyhow!("{}:{}: {e}", path.display(), i + 1))?;
            prompts.push(Prompt { line: i + 1, ..prompt });
        }
        if prompts.is_empty() {
            bail!("prompts {}: no prompt in it", path.display());
        }
        Ok(Self { path: path.to_path_buf(), prompts })
    }

    /// What stands for a file of `count` prompts in a plan.
    pub fn numbered(path: &Path, count: usize) -> Self {
        let prompt = |i: usize| Prompt { line: i, ..plain(&i.to_string()).expect("a text") };
        Self { path: path.to_path_buf(), prompts: (1..=count).map(prompt).collect() }
    }

    /// Runs `check` on every prompt.
    ///
    /// # Errors
    /// The first error, with file and line put before it.
    pub fn check(&self, check: impl Fn(&Prompt) -> Result<()>) -> Result<()> {
        for p in &self.prompts {
            check(p).map_err(|e| anyhow!("{}:{}: {e}", self.path.display(), p.line))?;
        }
        Ok(())
    }
}

fn plain(line: &str) -> Result<Prompt> {
    Ok(Prompt { text: line.to_string(), tag: None, include: Vec::new(), exclude: Vec::new(), line: 0 })
}

#[derive(Deserialize)]
struct RawRecord {
    prompt: String,
    tag: Option<String>,
    #[serde(default)]
    include: Vec<RawClause>,
    #[serde(default)]
    exclude: Vec<RawExclusion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClause {
    class: String,
    count: usize,
    color: Option<String>,
    position: Option<(String, usize)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExclusion {
    class: String,
    count: usize,
}

/// Keys without which a record says something else.
const CONDITIONS: [&str; 3] = ["prompt", "include", "exclude"];

fn record(line: &str) -> Result<Prompt> {
    let value: Value = serde_json::from_str(line).map_err(plainly)?;
    // Once more for errors that say the column.
    let raw: Result<RawRecord, _> = serde_json::from_str(line);
    check_keys(&value)?;
    resolved(raw.map_err(plainly)?)
}

fn of_record(value: &Value) -> Result<Prompt> {
    check_keys(value)?;
    resolved(RawRecord::deserialize(value)?)
}

fn check_keys(value: &Value) -> Result<()> {
    // Other keys are other tools' metadata. But one that is nearly one of these, where that is missing, is a misspelling that
    // would drop a condition.
    if let Some(object) = value.as_object() {
        for key in object.keys() {
            let meant = nearest(key, CONDITIONS).filter(|meant| !object.contains_key(*meant));
            if let Some(meant) = meant {
                bail!("unknown key '{}'; did you mean '{meant}'?", short(key));
            }
        }
    }
    Ok(())
}

fn resolved(raw: RawRecord) -> Result<Prompt> {
    let text = raw.prompt.trim().to_string();
    if text.is_empty() {
        bail!("key 'prompt' is empty");
    }
    let mut include = Vec::new();
    for (i, c) in raw.include.into_iter().enumerate() {
        include.push(clause(c, i).map_err(|e| anyhow!("include[{i}].{e}"))?);
    }
    let exclude = raw.exclude.into_iter().map(|e| Exclusion { class: e.class, count: e.count }).collect();
    Ok(Prompt { text, tag: raw.tag, include, exclude, line: 0 })
}

fn clause(raw: RawClause, index: usize) -> Result<Clause> {
    if raw.count == 0 {
        bail!("count is 0, expected at least 1");
    }
    let color = raw.color.as_deref().map(Color::parse).transpose().map_err(|e| anyhow!("color is {e}"))?;
    let position = match raw.position {
        None => None,
        Some((_, target)) if target >= index => {
            bail!("position refers to clause {target}, expected an earlier one than {index}")
        }
        Some((name, target)) => Some((Relation::parse(&name).map_err(|e| anyhow!("position is {e}"))?, target)),
    };
    Ok(Clause { class: raw.class, count: raw.count, color, position })
}

/// The JSON error with the column only: the line inside the record is always 1 and would be taken for the file's.
fn plainly(e: serde_json::Error) -> anyhow::Error {
    let text = e.to_string();
    match text.split_once(" at line 1 column ") {
        Some((what, column)) => anyhow!("{what} (column {column})"),
        None => anyhow!(text),
    }
}
