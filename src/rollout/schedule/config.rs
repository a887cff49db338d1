//! Reads a scheduler's config as diffusers writes it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{Curve, Dynamic, Schedule, Shift, Spacing};
use crate::io::did_you_mean;

/// The scheduler that SD3 has.
const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// The keys of one file; null counts as missing.
struct Keys<'a> {
    file: &'a Path,
    values: Map<String, Value>,
}

impl Keys<'_> {
    fn get<T>(&self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let value = self.values.get(key).filter(|v| !v.is_null());
        let read = |v| read(v).with_context(|| format!("{}: {key} is {v}, expected {what}", self.file.display()));
        value.map(read).transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        Ok(self.get(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number above 0", |v| v.as_f64().filter(|v| *v > 0.0))
    }

    fn count(&self, key: &str, default: u32) -> Result<f64> {
        let count =
            self.get(key, "a whole number of at least 1", |v| v.as_f64().filter(|v| *v >= 1.0 && v.fract() == 0.0));
        Ok(count?.unwrap_or(default.into()))
    }

    fn shift(&self) -> Result<Shift> {
        if !self.flag("use_dynamic_shifting")? {
            return Ok(Shift::Static(self.positive("shift")?.unwrap_or(1.0)));
        }
        let number =
            |key, default| Ok::<_, anyhow::Error>(self.get(key, "a number", Value::as_f64)?.unwrap_or(default));
        let kind = self.get("time_shift_type", "a string", |v| v.as_str().map(str::to_string))?;
        const KINDS: [&str; 2] = ["exponential", "linear"];
        let kind = kind.as_deref().unwrap_or(KINDS[0]);
        let (file, hint) = (self.file.display(), did_you_mean(kind, KINDS));
        ensure!(
            KINDS.contains(&kind),
            "{file}: time_shift_type is '{kind}', expected '{}' or '{}'{hint}",
            KINDS[0],
            KINDS[1]
        );
        let dynamic = Dynamic {
            base: (self.count("base_image_seq_len", 256)?, number("base_shift", 0.5)?),
            max: (self.count("max_image_seq_len", 4096)?, number("max_shift", 1.15)?),
            exponential: kind == KINDS[0],
        };
        ensure!(
            dynamic.base.0 != dynamic.max.0,
            "{file}: base_image_seq_len and max_image_seq_len are both {}, expected two numbers of tokens",
            dynamic.base.0
        );
        Ok(Shift::Dynamic(dynamic))
    }

    fn spacing(&self) -> Result<Spacing> {
        let curves = [
            ("use_karras_sigmas", Curve::Karras),
            ("use_exponential_sigmas", Curve::Exponential),
            ("use_beta_sigmas", Curve::Beta),
        ];
        let mut chosen = None;
        for (key, curve) in curves {
            if !self.flag(key)? {
                continue;
            }
            if let Some((other, _)) = chosen.replace((key, curve)) {
                bail!("{}: {other} and {key} are both true, expected one of them", self.file.display());
            }
        }
        let Some((_, curve)) = chosen else { return Ok(Spacing::Shifted) };
        Ok(Spacing::Between { curve, first: self.positive("sigma_max")?, last: self.positive("sigma_min")? })
    }
}

/// The schedule that `settings`, those of the file at `path`, describe.
pub(super) fn read(path: &Path, settings: Value) -> Result<Schedule> {
    let file = path.display();
    let Value::Object(values) = settings else { bail!("{file}: expected an object with keys") };
    let keys = Keys { file: path, values };
    let class = keys.get("_class_name", "a string", |v| v.as_str().map(str::to_string))?;
    if let Some(other) = class.filter(|class| class != CLASS) {
        bail!("{file}: _class_name is '{other}', only {CLASS} is supported");
    }
    // Time that runs from image to noise, and noise between the steps: other models' and other samplers'.
    for key in ["invert_sigmas", "stochastic_sampling"] {
        ensure!(!keys.flag(key)?, "{file}: {key} is not supported");
    }
    let terminal =
        keys.get("shift_terminal", "a number from 0 to below 1", |v| v.as_f64().filter(|v| (0.0..1.0).contains(v)))?;
    Ok(Schedule {
        shift: keys.shift()?,
        train_steps: keys.count("num_train_timesteps", 1000)? as usize,
        // For diffusers 0 is none.
        terminal: terminal.filter(|v| *v > 0.0),
        spacing: keys.spacing()?,
    })
}
