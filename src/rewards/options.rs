//! What a config says about one reward beside its weight: values by key, and what keys a reward has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::io::did_you_mean;
use crate::io::origins::from;
use crate::models::outline::is_outline;

/// One key of a reward's table.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// What a key holds.
pub enum Kind {
    /// A file or a folder; without the key, the first of `places` that exists.
    Path {
        /// What is there, as in "the folder of a CLIP model".
        what: &'static str,
        /// Where it is looked for, relative to the working directory.
        places: &'static [&'static str],
        /// Whether the reward does without.
        optional: bool,
    },
    /// One of these words; the first is the default.
    Choice(&'static [&'static str]),
    /// Any text.
    Text {
        /// What it says, as in "the server's address".
        what: &'static str,
        /// Whether the reward does without.
        optional: bool,
    },
    /// A number.
    Number {
        /// Without the key.
        default: f64,
        /// The least it can be.
        least: f64,
        /// The greatest it can be.
        most: f64,
    },
    /// A whole number.
    Whole {
        /// Without the key.
        default: usize,
        /// The least it can be.
        least: usize,
        /// The greatest it can be.
        most: usize,
    },
}

/// What a config says about one reward beside its weight.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, Value>);

impl Options {
    /// Nothing but one path.
    pub fn of_path(name: &str, path: &Path) -> Self {
        let mut options = Self::default();
        options.set_path(name, path);
        options
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the key `name` to `path`.
    pub fn set_path(&mut self, name: &str, path: &Path) {
        self.0.insert(name.into(), Value::String(path.to_string_lossy().into_owned()));
    }

    /// The keys that are said.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The path under `name`.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.text(name).map(Path::new)
    }

    /// The text under `name`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// The word under `name`, a [`Kind::Choice`].
    pub fn choice(&self, name: &str) -> &str {
        self.text(name).expect("resolved: a choice has a default")
    }

    /// The number under `name`, a [`Kind::Number`].
    pub fn number(&self, name: &str) -> f64 {
        as_number(&self.0[name]).expect("resolved: it is a number")
    }

    /// The number under `name`, a [`Kind::Whole`].
    pub fn whole(&self, name: &str) -> usize {
        self.0[name].as_integer().expect("resolved: it is a whole number") as usize
    }

    /// Takes what `others` say and these do not.
    pub fn fill(&mut self, others: Self) {
        for (name, value) in others.0 {
            self.0.entry(name).or_insert(value);
        }
    }

    /// Removes the paths among `keys`.
    pub fn forget_paths(&mut self, keys: &[Key]) {
        for key in keys.iter().filter(|key| matches!(key.kind, Kind::Path { .. })) {
            self.0.remove(key.name);
        }
    }

    /// Removes the keys `names`.
    pub fn forget(&mut self, names: &[&str]) {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// The paths among `keys` that are said, with their names.
    pub fn paths<'a>(&'a self, keys: &'a [Key]) -> impl Iterator<Item = (&'static str, &'a Path)> {
        let is_path = |key: &&Key| matches!(key.kind, Kind::Path { .. });
        keys.iter().filter(is_path).filter_map(|key| Some((key.name, self.path(key.name)?)))
    }

    /// Names the place where each path of `keys` that is not said would be looked for: the first that exists, or else the
    /// first.
    pub fn fill_places(&mut self, keys: &[Key]) {
        for key in keys {
            let Kind::Path { places, optional, .. } = key.kind else { continue };
            let found = places.iter().find(|place| Path::new(place).exists());
            let place = if optional { found } else { found.or(places.first()) };
            if let (Some(place), false) = (place, self.0.contains_key(key.name)) {
                self.set_path(key.name, Path::new(place));
            }
        }
    }

    /// These options with the defaults of `keys`, of the reward `reward`.
    ///
    /// # Errors
    /// Names a key the reward has not, with the nearest; a value of the wrong kind; a key that is missing; a path where nothing
    /// is, with all places that were looked at.
    pub fn resolve(mut self, reward: &str, keys: &[Key]) -> Result<Self> {
        if let Some(unknown) = self.names().find(|name| !keys.iter().any(|key| key.name == *name)) {
            let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
            match known.is_empty() {
                true => bail!("rewards.{reward}.{unknown}: {reward} has no keys but weight"),
                false => bail!(
                    "rewards.{reward}.{unknown}: {reward} has no such key, expected {}{}",
                    known.join(", "),
                    did_you_mean(unknown, known.iter().copied())
                ),
            }
        }
        for key in keys {
            let full = format!("rewards.{reward}.{}", key.name);
            match self.0.get(key.name) {
                Some(value) => key.check(&full, value)?,
                None => {
                    if let Some(value) = key.default(&full)? {
                        self.0.insert(key.name.into(), value);
                    }
                }
            }
        }
        Ok(self)
    }
}

impl Key {
    /// A path that must be there.
    pub const fn path(name: &'static str, what: &'static str, places: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Path { what, places, optional: false } }
    }

    /// A word of `words`, the first by default.
    pub const fn choice(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, kind: Kind::Choice(words) }
    }

    /// Fails unless `value`, of the key `full`, is of this kind.
    fn check(&self, full: &str, value: &Value) -> Result<()> {
        let expected = match &self.kind {
            Kind::Path { what, .. } => match value.as_str().map(PathBuf::from) {
                Some(path) if path.exists() || is_outline(&path) => return Ok(()),
                Some(path) => bail!("{full}: there is no {}, expected {what}", path.display()),
                None => format!("the path of {what}"),
            },
            Kind::Choice(words) => match value.as_str() {
                Some(word) if words.contains(&word) => return Ok(()),
                word => {
                    let hint = word.map(|w| did_you_mean(w, words.iter().copied())).unwrap_or_default();
                    format!("one of {}{hint}", words.join(", "))
                }
            },
            Kind::Text { what, .. } => match value.as_str() {
                Some(_) => return Ok(()),
                None => format!("{what}, a text"),
            },
            Kind::Number { least, most, .. } => match as_number(value) {
                Some(x) if (*least..=*most).contains(&x) => return Ok(()),
                _ => format!("a number from {least} to {most}"),
            },
            Kind::Whole { least, most, .. } => match value.as_integer().and_then(|x| usize::try_from(x).ok()) {
                Some(x) if (*least..=*most).contains(&x) => return Ok(()),
                _ => format!("a whole number from {least} to {most}"),
            },
        };
        bail!("{full}: found {value}, expected {expected}")
    }

    /// What the key `full` holds if nothing is said.
    fn default(&self, full: &str) -> Result<Option<Value>> {
        Ok(match &self.kind {
            Kind::Path { what, places, optional } => match places.iter().find(|place| Path::new(place).exists()) {
                Some(place) => Some(Value::String((*place).into())),
                None if *optional => None,
                None if places.is_empty() => bail!("{full}: missing, expected {what}"),
                None => bail!("{}", nowhere(full, what, places)),
            },
            Kind::Choice(words) => Some(Value::String(words[0].into())),
            Kind::Text { optional: true, .. } => None,
            Kind::Text { what, .. } => bail!("{full}: missing, expected {what}"),
            Kind::Number { default, .. } => Some(Value::Float(*default)),
            Kind::Whole { default, .. } => Some(Value::Integer(*default as i64)),
        })
    }
}

/// That the key `full` is missing and `what` it names is at none of `places`, and where to get it.
pub(super) fn nowhere(full: &str, what: &str, places: &[&str]) -> String {
    let from = from(Path::new(places[0]));
    format!("{full}: missing, and there is no {}; expected {what}{from}", places.join(", no "))
}

/// A number, whole or not.
fn as_number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|n| n as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [Key; 5] = [
        Key::path("model", "the folder of a model", &["no/such/place", "no/other"]),
        Key::choice("channels", &["rgb", "bgr"]),
        Key { name: "timeout", kind: Kind::Number { default: 60.0, least: 0.1, most: 3600.0 } },
        Key { name: "retries", kind: Kind::Whole { default: 3, least: 0, most: 100 } },
        Key { name: "url", kind: Kind::Text { what: "the server's address", optional: true } },
    ];

    fn resolve(text: &str) -> Result<Options> {
        toml::from_str::<Options>(text).unwrap().resolve("r", &KEYS)
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let options = resolve("model = 'src'\ntimeout = 5").unwrap();
        assert_eq!(options.path("model"), Some(Path::new("src")));
        assert_eq!((options.choice("channels"), options.number("timeout"), options.whole("retries")), ("rgb", 5.0, 3));
        assert_eq!(options.text("url"), None);
    }

    #[test]
    fn a_mistake_is_named_with_its_key_and_what_would_do() {
        for (text, want) in [
            (
                "modell = 'src'",
                "rewards.r.modell: r has no such key, expected model, channels, timeout, retries, url; did you mean 'model'?",
            ),
            (
                "channels = 'rgb'",
                "rewards.r.model: missing, and there is no no/such/place, no no/other; expected the folder of a model",
            ),
            ("model = 'nowhere'", "rewards.r.model: there is no nowhere, expected the folder of a model"),
            ("model = 'src'\nchannels = 'rbg'", "rewards.r.channels: found \"rbg\", expected one of rgb, bgr"),
            ("model = 'src'\ntimeout = 0", "rewards.r.timeout: found 0, expected a number from 0.1 to 3600"),
            ("model = 'src'\nretries = -1", "rewards.r.retries: found -1, expected a whole number from 0 to 100"),
            ("model = 'src'\nurl = 7", "rewards.r.url: found 7, expected the server's address, a text"),
        ] {
            let message = resolve(text).unwrap_err().to_string();
            assert!(message.starts_with(want), "{message}");
        }
    }
}
