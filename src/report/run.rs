//! What is in the folder of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::device::Device;
use crate::io::{did_you_mean, read, read_json};

/// The file of a run that says where it comes from.
pub const ABOUT: &str = "run.json";

/// The log of a run.
const LOG: &str = "metrics.jsonl";

/// Where a run comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Version of the engine.
    pub engine: String,
    /// The command line.
    pub command: Vec<String>,
    /// What it was computed on.
    pub device: String,
    /// Worker threads.
    pub threads: usize,
}

impl About {
    /// This process on `device`.
    pub fn here(device: &Device) -> Self {
        let name = match device {
            Device::Gpu(gpu) => gpu.facts().name.clone(),
            Device::Cpu | Device::Plan(_) => format!("{} CPU", std::env::consts::ARCH),
        };
        Self {
            engine: env!("CARGO_PKG_VERSION").into(),
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            device: name,
            threads: rayon::current_num_threads(),
        }
    }
}

/// A run as its folder tells it.
#[derive(Debug)]
pub struct Run {
    /// What tells it from the other runs of the page.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its configuration; empty if the folder has none.
    pub config: toml::Table,
    /// Where it comes from, if it says.
    pub about: Option<About>,
    /// What the log says of each epoch.
    pub epochs: BTreeMap<u64, Value>,
    /// Lines of the log with an evaluation, by the number of epochs that were done.
    pub evals: BTreeMap<u64, Value>,
    /// Whole lines of the log that could not be read.
    pub unreadable: usize,
}

/// What the x axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Epochs.
    Epochs,
    /// Optimiser steps.
    Updates,
    /// Images that were trained on.
    Images,
    /// Seconds of training, evaluations left out.
    Seconds,
}

/// A value for each of some epochs; `None` where it is missing or was not finite.
pub type Values = Vec<(u64, Option<f64>)>;

/// The value at `path` (keys of objects) in a line of the log.
pub fn number(line: &Value, path: &[&str]) -> Option<f64> {
    path.iter().try_fold(line, |at, key| at.get(key))?.as_f64()
}

impl Run {
    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// Names the folder if it is not one, or has no log; the file if it is damaged. A last line that is cut short, as
    /// while it is being written, is left out.
    pub fn read(folder: &Path) -> Result<Self> {
        if !folder.exists() {
            bail!("no such run folder: {}{}", folder.display(), similar(folder));
        }
        ensure!(folder.is_dir(), "{} is a file, expected the output folder of a run", folder.display());
        let path = folder.join(LOG);
        if !path.exists() {
            bail!("{}: no {LOG} in it, expected the output folder of a run{}", folder.display(), inside(folder));
        }
        let log = read::bytes(&path)?;
        let config = match folder.join("config.toml") {
            config if config.exists() => read::text(&config)?
                .parse()
                .map_err(|e: toml::de::Error| anyhow!("{}: {}", config.display(), e.message()))?,
            _ => toml::Table::new(),
        };
        let about = folder.join(ABOUT);
        let about = if about.exists() { Some(read_json(&about)?) } else { None };
        let mut run = Self {
            name: base_name(folder),
            folder: folder.to_path_buf(),
            config,
            about,
            epochs: BTreeMap::new(),
            evals: BTreeMap::new(),
            unreadable: 0,
        };
        run.take_in(&String::from_utf8_lossy(&log));
        let is_empty = run.epochs.is_empty() && run.evals.is_empty();
        ensure!(!is_empty || run.unreadable == 0, "{}: no line of it is of an epoch or an evaluation", path.display());
        Ok(run)
    }

    /// Sorts the lines of a log. The last of several lines about an epoch counts.
    fn take_in(&mut self, log: &str) {
        for line in log.split_inclusive('\n').filter(|line| !line.trim().is_empty()) {
            let value = serde_json::from_str::<Value>(line).ok();
            match value.and_then(|v| Some((v["epoch"].as_u64()?, v))) {
                Some((epoch, v)) if v["eval"].is_object() => _ = self.evals.insert(epoch, v),
                Some((epoch, v)) => _ = self.epochs.insert(epoch, v),
                None => self.unreadable += usize::from(line.ends_with('\n')),
            }
        }
    }

    /// The number or text at the dotted `key` of the configuration.
    pub fn key(&self, key: &str) -> Option<&toml::Value> {
        let mut parts = key.split('.');
        let first = self.config.get(parts.next()?)?;
        parts.try_fold(first, |at, part| at.get(part))
    }

    /// The whole number at `key` of the configuration.
    pub fn count(&self, key: &str) -> Option<u64> {
        u64::try_from(self.key(key)?.as_integer()?).ok()
    }

    /// Images of an epoch; logs of earlier versions leave it to the configuration.
    fn images(&self, line: &Value) -> Option<f64> {
        let count = |key: &str| Some(self.count(&format!("rollout.{key}"))? as f64);
        let configured = || Some(count("num_prompts_per_epoch")? * count("num_images_per_prompt")?);
        number(line, &["images"]).or_else(configured)
    }

    /// Seconds of an epoch.
    fn seconds(&self, line: &Value) -> Option<f64> {
        let by_speed = || Some(self.images(line)? / number(line, &["images_per_second"])?);
        number(line, &["total_seconds"]).or_else(by_speed).filter(|s| s.is_finite())
    }

    /// Where each epoch is on `axis`; nothing where the log does not say.
    pub fn places(&self, axis: Axis) -> BTreeMap<u64, f64> {
        let mut at = Some(0.0);
        let mut places = BTreeMap::from([(0, 0.0)]);
        for (epoch, line) in &self.epochs {
            let step = match axis {
                Axis::Epochs => None,
                Axis::Updates => number(line, &["updates"]).zip(at).map(|(done, at)| done - at),
                Axis::Images => self.images(line),
                Axis::Seconds => self.seconds(line),
            };
            at = at.zip(step).map(|(at, step)| at + step);
            places.extend(at.map(|at| (*epoch, at)));
        }
        if axis == Axis::Epochs {
            places.extend(self.epochs.keys().chain(self.evals.keys()).map(|e| (*e, *e as f64)));
        }
        places
    }

    /// The number at `path` of every epoch's line.
    pub fn training(&self, path: &[&str]) -> Values {
        self.epochs.iter().map(|(epoch, line)| (*epoch, number(line, path))).collect()
    }

    /// The number at `path` of every evaluation.
    pub fn held_out(&self, path: &[&str]) -> Values {
        self.evals.iter().map(|(epoch, line)| (*epoch, number(line, path))).collect()
    }

    /// Names of the numbers at `path` in any evaluation.
    pub fn names(&self, path: &[&str]) -> Vec<String> {
        let tables = self.evals.values().filter_map(|line| path.iter().try_fold(line, |at, key| at.get(key)));
        let names = tables.filter_map(Value::as_object).flat_map(|table| table.keys().cloned());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// The evaluation with the highest held-out reward, the earliest of equal ones, and that reward.
    pub fn best(&self) -> Option<(u64, f64)> {
        let rewards = self.held_out(&["eval", "reward"]).into_iter().filter_map(|(epoch, r)| Some((epoch, r?)));
        rewards.reduce(|best, next| if next.1 > best.1 { next } else { best })
    }
}

/// The last part of a folder's path, also where that is written as `.`.
fn base_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map_or_else(|| whole.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// What may have been meant by a folder that is not there.
fn similar(folder: &Path) -> String {
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (name, known) = (base_name(folder), children(parent));
    did_you_mean(&name, known.iter().map(String::as_str))
}

/// The names of the folders in `folder`.
fn children(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The runs in a folder that is none itself.
fn inside(folder: &Path) -> String {
    let runs: Vec<String> = children(folder).into_iter().filter(|name| folder.join(name).join(LOG).exists()).collect();
    match runs.as_slice() {
        [] => String::new(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} others in it", rest.len()) };
            format!("; {} is one{more}", folder.join(first).display())
        }
    }
}

/// Reads the runs in `folders`, each with a name of its own.
///
/// # Errors
/// As [`Run::read`]; also if there is none, or a folder is given twice.
pub fn read_all(folders: &[PathBuf]) -> Result<Vec<Run>> {
    ensure!(!folders.is_empty(), "no run folder given");
    let mut runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<Run>>>()?;
    for (i, folder) in folders.iter().enumerate() {
        let is_same = |other: &PathBuf| other.canonicalize().ok() == folder.canonicalize().ok();
        ensure!(!folders[..i].iter().any(is_same), "{} is given twice", folder.display());
    }
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in &mut runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = run.folder.display().to_string();
        }
    }
    Ok(runs)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A folder with a log, and a configuration of eight images an epoch.
    pub fn folder(log: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOG), log).unwrap();
        let config = "[rollout]\nnum_prompts_per_epoch = 2\nnum_images_per_prompt = 4\n";
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        dir
    }

    fn error(folder: &Path) -> String {
        let error = format!("{:#}", Run::read(folder).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn a_log_is_read_as_far_as_it_goes() {
        let lines = [
            json!({"epoch": 0, "eval": {"reward": 0.25}}).to_string(),
            json!({"epoch": 1, "loss": 2.0, "images_per_second": 4.0}).to_string(),
            "not json".into(),
            json!({"epoch": 2, "loss": null, "total_seconds": 3.0, "images_per_second": 1.0}).to_string(),
            json!({"epoch": 2, "eval": {"reward": 0.75, "geneval": 1.0}}).to_string(),
            json!({"epoch": 3, "loss": 9.0}).to_string(),
        ];
        // Lines that are written again after a resume count, and half a line at the end is nobody's mistake.
        let dir = folder(&format!("{}\n{}\n{{\"epoch\":4,\"lo", lines.join("\n"), lines[1].replace("2.0", "5.0")));
        let run = Run::read(dir.path()).unwrap();
        assert_eq!(run.training(&["loss"]), [(1, Some(5.0)), (2, None), (3, Some(9.0))]);
        assert_eq!(run.held_out(&["eval", "reward"]), [(0, Some(0.25)), (2, Some(0.75))]);
        assert_eq!((run.unreadable, run.best()), (1, Some((2, 0.75))));
        assert_eq!(run.names(&["eval"]), ["geneval", "reward"]);
        assert_eq!(run.places(Axis::Epochs), (0..4).map(|e| (e, e as f64)).collect());
        assert_eq!(run.places(Axis::Images), BTreeMap::from([(0, 0.0), (1, 8.0), (2, 16.0), (3, 24.0)]));
        // The third epoch does not say how long it took.
        assert_eq!(run.places(Axis::Seconds), BTreeMap::from([(0, 0.0), (1, 2.0), (2, 5.0)]));
    }

    #[test]
    fn a_run_that_has_only_begun_is_a_run() {
        for log in ["", "\n", "{\"epoch\":0,\"ev"] {
            let run = Run::read(folder(log).path()).unwrap();
            assert!(run.epochs.is_empty() && run.evals.is_empty() && run.best().is_none());
        }
    }

    #[test]
    fn what_is_no_run_is_named_with_what_may_have_been_meant() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("geneval");
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join(LOG), "").unwrap();
        assert!(error(&dir.path().join("genevals")).ends_with("did you mean 'geneval'?"));
        assert!(error(dir.path()).ends_with("geneval is one"));
        assert!(error(&run.join(LOG)).ends_with("is a file, expected the output folder of a run"));
        for (name, text) in [(LOG, "a\n[1]\n"), ("config.toml", "a ="), (ABOUT, "{")] {
            let dir = folder("");
            std::fs::write(dir.path().join(name), text).unwrap();
            assert!(error(dir.path()).contains(name));
        }
    }

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["a/run", "b/run", "c"].map(|name| dir.path().join(name));
        for folder in &folders {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(LOG), "").unwrap();
        }
        let names: Vec<String> = read_all(&folders).unwrap().into_iter().map(|run| run.name).collect();
        assert!(names[0].ends_with("a/run") && names[1].ends_with("b/run"), "{names:?}");
        assert_eq!(names[2], "c");
        let twice = [folders[0].clone(), dir.path().join("b/../a/run")];
        assert!(format!("{:#}", read_all(&twice).unwrap_err()).ends_with("run is given twice"));
    }
}
