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
#[serde(deny_unknown_fields)]
struct RewardTable {
    #[serde(default = "RewardTable::weight")]
    weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detector: Option<String>,
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
                let RewardTable { weight, model, detector } = table;
                Ok(RewardKeys { weight, options: Options { model, detector } })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Serialize for RewardKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Options { model, detector } = self.options.clone();
        if model.is_none() && detector.is_none() {
            return self.weight.serialize(serializer);
        }
        RewardTable { weight: self.weight, model, detector }.serialize(serializer)
    }
}
