//! What a config says about a reward: a weight, or a table of it.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rewards::Options;

/// What a config says about one reward.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardKeys {
    /// Its share of the sum.
    pub weight: f64,
    /// What it needs besides.
    pub options: Options,
}

impl RewardKeys {
    /// A reward that needs nothing.
    pub fn weight(weight: f64) -> Self {
        Self { weight, options: Options::default() }
    }
}

/// The table form.
#[derive(Deserialize, Serialize)]
struct RewardTable {
    #[serde(default = "RewardTable::weight")]
    weight: f64,
    #[serde(flatten)]
    options: Options,
}

impl RewardTable {
    fn weight() -> f64 {
        1.0
    }
}

impl<'de> Deserialize<'de> for RewardKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = RewardKeys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a weight or a table with weight, model, ...")
            }

            fn visit_f64<E>(self, weight: f64) -> Result<RewardKeys, E> {
                Ok(RewardKeys::weight(weight))
            }

            fn visit_i64<E>(self, weight: i64) -> Result<RewardKeys, E> {
                Ok(RewardKeys::weight(weight as f64))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<RewardKeys, A::Error> {
                let table = RewardTable::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(RewardKeys { weight: table.weight, options: table.options })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Serialize for RewardKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.options.is_empty() {
            true => self.weight.serialize(serializer),
            false => RewardTable { weight: self.weight, options: self.options.clone() }.serialize(serializer),
        }
    }
}

/// What `[reward_models]` says of one reward.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged, expecting = "expected the path of a model or a table of the reward's keys")]
pub enum RewardModel {
    /// Its key `model`.
    Model(PathBuf),
    /// Any of its keys.
    Keys(Options),
}

impl RewardModel {
    /// As keys.
    pub fn options(&self) -> Options {
        match self {
            Self::Model(path) => Options::of_path("model", path),
            Self::Keys(options) => options.clone(),
        }
    }
}
