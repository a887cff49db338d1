//! What a config names and is not there, and where to get it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::TrainConfig;
use crate::io::built_in;
use crate::io::origins::{from, origin};
use crate::models::outline::is_outline;
use crate::rewards;

/// Fails if nothing is at `path`, which `what` asks for.
///
/// # Errors
/// Says where to get it.
pub fn check_path(what: &str, path: &Path) -> Result<()> {
    ensure!(path.exists(), "{what}: there is no {}{}", path.display(), from(path));
    Ok(())
}

/// The keys of `raw` that name something to be read, and what they name.
fn inputs(raw: &TrainConfig) -> Vec<(String, PathBuf)> {
    let mut inputs = vec![("model".to_string(), raw.model.clone())];
    for (name, keys) in &raw.rewards {
        let said = (format!("rewards.{name}"), keys.options.clone());
        let beside = raw.reward_models.get(name).map(|model| (format!("reward_models.{name}"), model.options()));
        for (place, options) in [Some(said), beside].into_iter().flatten() {
            let Ok(entry) = rewards::entry(name) else { continue };
            inputs.extend(options.paths(entry.keys).map(|(key, path)| (format!("{place}.{key}"), path.to_path_buf())));
        }
    }
    inputs.push(("prompts.train".into(), raw.prompts.train.clone()));
    inputs.push(("prompts.eval".into(), raw.prompts.eval.clone()));
    inputs
}

/// Fails if something is not there that published configs name. What nobody can know the origin of is left to those who
/// read it.
///
/// # Errors
/// One line with everything that is missing: key, path, and where to get it.
pub fn check(raw: &TrainConfig) -> Result<()> {
    // Before anyone downloads something for a reward that is not there.
    if !raw.rewards.keys().all(|name| rewards::names().contains(&name.as_str())) {
        return Ok(());
    }
    let is_missing = |path: &Path| !(path.exists() || is_outline(path) || built_in::is_named(path));
    let missing: Vec<(String, PathBuf)> = inputs(raw).into_iter().filter(|(_, path)| is_missing(path)).collect();
    if missing.iter().all(|(_, path)| origin(path).is_none()) {
        return Ok(());
    }
    // What comes from the same place is said together.
    let mut groups: Vec<(Option<&str>, Vec<String>)> = Vec::new();
    for (key, path) in &missing {
        let (from, what) = (origin(path), format!("{key} = {}", path.display()));
        match groups.iter_mut().find(|(other, _)| *other == from) {
            Some((_, whats)) => whats.push(what),
            None => groups.push((from, vec![what])),
        }
    }
    let told = groups.iter().map(|(from, whats)| {
        let from = from.map(|from| format!(" ({from})")).unwrap_or_default();
        format!("{}{from}", whats.join(" and "))
    });
    bail!(
        "not here: {}. Put them there, or name other places with --set {}=PATH; --dry-run --device plan:h100 plans without them",
        told.collect::<Vec<_>>().join("; "),
        missing[0].0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::config::published::Published;

    #[test]
    fn of_everything_that_a_published_config_names_the_origin_is_known() {
        for one in Published::all() {
            for (key, path) in inputs(&parse(one.name, one.text).unwrap()) {
                let name = path.strip_prefix("configs").ok().map(|name| Path::new("built-in:").join(name));
                let name = name.map(|n| n.to_str().unwrap().replacen(":/", ":", 1));
                let is_built_in = name.is_some_and(|name| built_in::text(Path::new(&name)).is_ok());
                assert!(is_built_in || origin(&path).is_some(), "{}: {key} = {}", one.name, path.display());
            }
        }
    }

    #[test]
    fn all_that_is_missing_is_said_at_once() {
        let config = Published::named("ram_pickscore").unwrap();
        let mut raw = parse("c", config.text).unwrap();
        raw.prompts.eval = "nowhere.txt".into();
        let e = check(&raw).unwrap_err().to_string();
        for words in [
            "model = models/stable-diffusion-3.5-medium (hf download",
            "rewards.pickscore.model = models/PickScore_v1 (hf download",
            "prompts.train = data/pickscore/train.txt (the folder dataset/pickscore of",
            "; prompts.eval = nowhere.txt. Put",
        ] {
            assert!(e.contains(words), "{e}");
        }
        // Others say what else is missing, and whose reward there is not.
        raw.model = "elsewhere".into();
        raw.rewards.clear();
        raw.prompts.train = "built-in:tiny/prompts_train.jsonl".into();
        check(&raw).unwrap();
        let mut raw = parse("c", config.text).unwrap();
        raw.rewards.insert("nothing".into(), crate::config::reward::RewardKeys::weight(1.0));
        check(&raw).unwrap();
    }
}
