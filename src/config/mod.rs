//! Training configs: what the TOML says ([`raw`]), checked and completed with derived sizes ([`resolved`]). Read-only once
//! resolved.

pub mod method;
pub mod optimizer;
pub mod origins;
pub mod place;
pub mod published;
pub mod raw;
pub mod resolved;
pub mod reward;

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;

use crate::io::{nearest, short};
use crate::rewards::Options;
pub use place::Place;
pub use raw::TrainConfig;
pub use resolved::{Each, Job, Resolved};

/// Reads the config that `named` names and applies overrides of the form `key.path=value`.
///
/// # Errors
/// As [`Place::find`] and [`Place::load`].
pub fn load(named: &Path, overrides: &[String]) -> Result<TrainConfig> {
    Place::find(named)?.load(overrides)
}

/// What overrides `reward_models.<name>.<key>=value` say of the reward `name`, for commands without a config.
///
/// # Errors
/// Names an override of another form or of another reward.
pub fn reward_options(name: &str, overrides: &[String]) -> Result<Options> {
    let mut table = toml::Table::new();
    let start = format!("reward_models.{name}.");
    for one in overrides {
        if !one.starts_with(&start) {
            bail!("--set {}: expected {start}KEY=VALUE", short(one));
        }
        apply(&mut table, one)?;
    }
    match table.remove("reward_models").and_then(|mut models| models.as_table_mut()?.remove(name)) {
        Some(options) => Ok(Options::deserialize(options)?),
        None => Ok(Options::default()),
    }
}

/// Parses the config `text`, which errors call `name`, and applies overrides.
fn overridden(name: &str, text: &str, overrides: &[String]) -> Result<TrainConfig> {
    let config = parse(name, text)?;
    if overrides.is_empty() {
        return Ok(config);
    }
    let mut table: toml::Table = toml::from_str(text)?;
    for one in overrides {
        apply(&mut table, one)?;
        // Checked one by one, so that the error can name the override that caused it.
        TrainConfig::deserialize(table.clone())
            .map_err(|e| anyhow!("--set {}: {}", short(one), reword(e.message())))?;
    }
    Ok(TrainConfig::deserialize(table)?)
}

/// Parses a config from text; `name` stands for it in errors.
///
/// # Errors
/// One line naming the file and line with the key, what was found, and the nearest valid name.
pub fn parse(name: &str, text: &str) -> Result<TrainConfig> {
    toml::from_str(text).map_err(|e| anyhow!("{}", explain(name, text, &e)))
}

/// Sets one `key.path=value` in `table`. A value that is not TOML is taken as a string.
fn apply(table: &mut toml::Table, assignment: &str) -> Result<()> {
    /// More than any key has.
    const DEEPEST: usize = 8;
    let shown = short(assignment);
    let Some((path, value)) = assignment.split_once('=') else {
        bail!("--set {shown}: expected key.path=value");
    };
    if path.matches('.').count() >= DEEPEST {
        bail!("--set {shown}: a key of {} parts; none has more than {DEEPEST}", path.matches('.').count() + 1);
    }
    let value = value.trim();
    let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().expect("split gives at least one");
    let mut at = table;
    for key in keys {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match entry {
            toml::Value::Table(t) => t,
            other => bail!("--set {shown}: '{key}' is {}, not a table", other.type_str()),
        };
    }
    at.insert(last.to_string(), value);
    Ok(())
}

/// A parser's error in one line: file, line, and what to write instead.
fn explain(name: &str, text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return format!("{name}: {}", reword(error.message())) };
    let start = span.start.min(text.len());
    let line = text[..start].matches('\n').count() + 1;
    let content = text.lines().nth(line - 1).unwrap_or_default();
    let key = content.split_once('=').map(|(k, _)| format!("{}: ", k.trim())).unwrap_or_default();
    let message = reword(error.message());
    let key = if message.starts_with("unknown key") { String::new() } else { key };
    format!("{name}:{line}: {key}{message}")
}

/// serde's `unknown field` lists every valid name; the nearest one is what helps.
fn reword(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let kind = message.split('`').next().unwrap_or_default().trim();
    let (Some(found), "unknown field" | "unknown variant") = (quoted.next(), kind) else {
        return message.lines().collect::<Vec<_>>().join(" ");
    };
    let known: Vec<&str> = quoted.collect();
    let what = if kind == "unknown field" { "key" } else { "value" };
    match nearest(found, known.iter().copied()) {
        Some(n) => format!("unknown {what} '{found}'; did you mean '{n}'?"),
        None => format!("unknown {what} '{found}'; expected one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "algorithm = 'ram'\nmodel = 'm'\nnum_epochs = 3\n[prompts]\ntrain = 't'\neval = 'e'\n[rewards]\ngeneval = 1.0\n[ram]\nreward_multiplier = 10.0\n";

    fn error(text: &str) -> String {
        parse("a.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_valid_one() {
        let text = MINIMAL.replace("reward_multiplier", "reward_mutliplier");
        assert_eq!(error(&text), "a.toml:10: unknown key 'reward_mutliplier'; did you mean 'reward_multiplier'?");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line_and_key() {
        let text = MINIMAL.replace("num_epochs = 3", "num_epochs = 'three'");
        assert!(error(&text).starts_with("a.toml:3: num_epochs: invalid type: string \"three\""), "{}", error(&text));
    }

    #[test]
    fn defaults_are_the_published_settings() {
        let c = parse("a.toml", MINIMAL).unwrap();
        assert_eq!((c.rollout.num_prompts_per_epoch, c.rollout.num_images_per_prompt), (48, 24));
        assert_eq!((c.ram.unwrap().num_noisings, c.optimizer.lr, c.lora.rank), (8, 3e-4, 32));
        assert_eq!((c.rollout.guidance_scale, c.eval.guidance_scale), (2.0, 4.5));
        assert_eq!((c.optimizer.beta1, c.optimizer.beta2, c.ema.interval), (0.9, 0.99, 1));
    }

    #[test]
    fn the_algorithm_selects_its_table() {
        let text = MINIMAL.replace("[ram]\nreward_multiplier = 10.0\n", "");
        let e = parse("a.toml", &text).unwrap().check().unwrap_err().to_string();
        assert_eq!(e, "algorithm is 'ram', but there is no table [ram] with its settings");
        let e = error(&MINIMAL.replace("'ram'", "'rma'"));
        assert_eq!(e, "a.toml:1: algorithm: unknown value 'rma'; did you mean 'ram'?");
    }

    #[test]
    fn precisions_have_their_names_and_others_are_pointed_at_them() {
        use super::raw::Compute::{Bf16, F16, F32, Stored, Tf32};
        let with = |name: &str| parse("a.toml", &format!("{MINIMAL}[train]\ncompute = '{name}'\n"));
        assert_eq!(parse("a.toml", MINIMAL).unwrap().train.compute, Stored);
        for (name, compute) in [("stored", Stored), ("f16", F16), ("bf16", Bf16), ("f32", F32), ("tf32", Tf32)] {
            assert_eq!(with(name).unwrap().train.compute, compute);
        }
        for (name, nearest) in
            [("fp16", "f16"), ("bfp16", "bf16"), ("fp32", "f32"), ("tf3", "tf32"), ("sored", "stored")]
        {
            let e = with(name).unwrap_err().to_string();
            assert_eq!(e, format!("a.toml:12: compute: unknown value '{name}'; did you mean '{nearest}'?"));
        }
        let weights = |name: &str| parse("a.toml", &format!("{MINIMAL}[rollout]\nweights = '{name}'\n"));
        assert_eq!(weights("fp8").unwrap().rollout.weights, super::raw::Weights::Fp8);
        let e = weights("f8").unwrap_err().to_string();
        assert_eq!(e, "a.toml:12: weights: unknown value 'f8'; did you mean 'fp8'?");
        let e = with("half").unwrap_err().to_string();
        assert!(e.ends_with("unknown value 'half'; expected one of stored, f16, bf16, f32, tf32"), "{e}");
    }

    #[test]
    fn an_override_deeper_than_any_key_is_refused_in_a_short_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), MINIMAL).unwrap();
        let deep = format!("a{}=1", ".a".repeat(30_000));
        let e = load(file.path(), &[deep]).unwrap_err().to_string();
        assert!(e.contains("a key of 30001 parts") && e.len() < 300, "{e}");
    }

    #[test]
    fn overrides_reach_nested_keys_and_their_mistakes_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), MINIMAL).unwrap();
        let set = |s: &str| load(file.path(), &[s.to_string()]);
        assert_eq!(set("optimizer.lr=1e-3").unwrap().optimizer.lr, 1e-3);
        assert_eq!(set("model=models/other").unwrap().model.to_str(), Some("models/other"));
        let e = set("optimizer.lrr=1e-3").unwrap_err().to_string();
        assert_eq!(e, "--set optimizer.lrr=1e-3: unknown key 'lrr'; did you mean 'lr'?");
        assert!(set("optimizer.lr").unwrap_err().to_string().contains("expected key.path=value"));
    }

    #[test]
    fn a_reward_is_a_weight_or_a_table() {
        let with = |rewards: &str| parse("a.toml", &MINIMAL.replace("[rewards]\ngeneval = 1.0\n", rewards));
        let c = with("[rewards]\ngeneval = 2\n[rewards.pickscore]\nmodel = 'clip'\n").unwrap();
        assert_eq!((c.rewards["geneval"].weight, c.rewards["pickscore"].weight), (2.0, 1.0));
        assert_eq!(c.rewards["pickscore"].options.path("model"), Some(Path::new("clip")));
        assert_eq!(parse("b.toml", &toml::to_string(&c).unwrap()).unwrap(), c);
        let e = with("[rewards]\ngeneval = 'much'\n").unwrap_err().to_string();
        assert!(e.contains("geneval: invalid type: string \"much\", expected a weight or a table"), "{e}");
    }

    #[test]
    fn a_resolved_config_survives_being_written_and_read() {
        let c = parse("a.toml", MINIMAL).unwrap();
        assert_eq!(parse("b.toml", &toml::to_string(&c).unwrap()).unwrap(), c);
    }
}
