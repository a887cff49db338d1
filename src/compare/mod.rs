//! Several configs on the same model, prompts, seeds and budget: which learns how much, and how fast.
//!
//! Each config and seed is a run of its own in the comparison's folder; [`results`] makes a table and a figure of what their
//! logs say, as far as they have come.

pub mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::config::optimizer::LrSchedule;
use crate::config::{Job, Place, TrainConfig, origins};
use crate::device::Device;
use crate::io::read;
use crate::io::write::write_atomic;
use crate::report::differences;
use crate::telemetry::say;
use crate::train::guard::Interrupt;
use crate::train::plan::MemoryPlan;
use crate::train::run::{Outcome, Resume, run as train};
use crate::train::setup::{self, Planned};

/// How long each run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// As long as its config says.
    Config,
    /// This many epochs.
    Epochs(u32),
    /// As many epochs as make at least this many images.
    Images(usize),
    /// No epoch begins after this many seconds of training and evaluating.
    Seconds(u32),
}

/// More epochs than any number of seconds has.
const UNTIL_TIME_IS_UP: u32 = 1 << 20;

/// The file of a run that has been finished: its config, by which it can be told whether the same is asked for again.
const FINISHED: &str = "finished.toml";

/// One config with one seed.
pub struct Run {
    /// The config's name.
    pub name: String,
    /// The seed.
    pub seed: u64,
    /// The folder of the run.
    pub folder: PathBuf,
    planned: Planned,
}

impl Run {
    /// Its config as it is written to a file.
    fn text(&self) -> Result<String> {
        Ok(toml::to_string(&self.planned.config.raw)?)
    }

    /// Whether it has been finished by an earlier call.
    fn is_finished(&self) -> Result<bool> {
        let path = self.folder.join(FINISHED);
        Ok(path.exists() && read::text(&path)? == self.text()?)
    }
}

/// The runs of a comparison of `places`, all with `overrides`, seed by seed so that what there is early is of all of them.
/// Nothing is computed yet, and no file written.
///
/// # Errors
/// As [`setup::check`]; or if two configs have one name, a seed is given twice, or the configs are not judged alike.
pub fn plan(places: &[Place], seeds: &[u64], budget: Budget, overrides: &[String], output: &Path) -> Result<Vec<Run>> {
    let names: Vec<String> = places.iter().map(Place::name).collect();
    let mut seen = BTreeSet::new();
    for name in &names {
        ensure!(seen.insert(name), "--config: two configs are called '{name}', and their runs would share a folder");
    }
    let mut known = BTreeSet::new();
    for seed in seeds {
        ensure!(known.insert(seed), "--seeds: {seed} is given twice, and would count twice");
    }
    let mut configs = Vec::new();
    for place in places {
        let raw = place.load(overrides)?;
        origins::check(&raw).with_context(|| place.to_string())?;
        configs.push(budgeted(raw, budget).with_context(|| place.to_string())?);
    }
    judged_alike(&names, &configs)?;
    let check =
        |(place, config): (&Place, TrainConfig)| setup::check(config, Job::Train).with_context(|| place.to_string());
    let planned: Vec<Planned> = places.iter().zip(configs).map(check).collect::<Result<_>>()?;
    let run = |seed: u64, name: &String, planned: &Planned| {
        let mut planned = planned.clone();
        planned.config.raw.seed = seed;
        let folder = output.join(name).join(format!("seed-{seed}"));
        Run { name: name.clone(), seed, folder, planned }
    };
    let of_seed =
        |seed: &u64| names.iter().zip(&planned).map(|(name, planned)| run(*seed, name, planned)).collect::<Vec<_>>();
    Ok(seeds.iter().flat_map(of_seed).collect())
}

/// `raw` with the length that `budget` gives it.
fn budgeted(mut raw: TrainConfig, budget: Budget) -> Result<TrainConfig> {
    match budget {
        Budget::Config => {}
        Budget::Epochs(epochs) => raw.num_epochs = epochs,
        Budget::Images(images) => {
            let each = setup::check(raw.clone(), Job::Train)?.config.images;
            raw.num_epochs = u32::try_from(images.div_ceil(each)).context("--images: too many")?;
        }
        Budget::Seconds(seconds) => {
            let schedule = raw.optimizer.schedule;
            ensure!(
                schedule == LrSchedule::Constant,
                "--seconds: optimizer.schedule is not 'constant', and a learning rate that ends with the run needs a number of \
                 epochs; use --epochs, or --set optimizer.schedule=constant"
            );
            (raw.num_epochs, raw.stop.max_seconds) = (UNTIL_TIME_IS_UP, seconds);
        }
    }
    Ok(raw)
}

/// What must be the same for two rewards to mean the same.
const JUDGES: [&str; 7] = ["model", "variant", "parts", "prompts", "rewards", "reward_models", "eval"];

/// Fails unless `configs` ask for the same held-out reward.
fn judged_alike(names: &[String], configs: &[TrainConfig]) -> Result<()> {
    let tables: Vec<toml::Table> = configs
        .iter()
        .map(|config| {
            let mut table = toml::Table::try_from(config)?;
            table.retain(|key, _| JUDGES.contains(&key));
            // How many of the pictures are shown changes no number.
            table.get_mut("eval").and_then(toml::Value::as_table_mut).map(|eval| eval.remove("grid"));
            Ok(table)
        })
        .collect::<Result<_>>()?;
    let Some((key, said)) = differences(&tables.iter().collect::<Vec<_>>()).into_iter().next() else { return Ok(()) };
    let said: Vec<String> = names
        .iter()
        .zip(said)
        .map(|(name, v)| format!("{} in {name}", v.unwrap_or_else(|| "not there".into())))
        .collect();
    bail!(
        "{key} is {}: rewards of different models, prompts or settings cannot be compared; --set {key}=VALUE makes it the same",
        said.join(", ")
    )
}

/// Trains what is not finished yet of `runs`, and writes the results to `output` after each of them. How often a run reports is
/// its own affair; `verbose` as for a run.
///
/// # Errors
/// As [`train`](crate::train::run::run); or [`Interrupted`](crate::train::guard::Interrupted), everything being saved.
pub fn go(mut runs: Vec<Run>, output: &Path, reach: Option<f64>, verbose: bool, device: &Device) -> Result<()> {
    let interrupt = Interrupt::install()?;
    fit(&mut runs, device)?;
    let all: Vec<(String, PathBuf)> = runs.iter().map(|run| (run.name.clone(), run.folder.clone())).collect();
    let count = runs.len();
    for (i, run) in runs.into_iter().enumerate() {
        let what = format!("{} of {count}: {}, seed {} -> {}", i + 1, run.name, run.seed, run.folder.display());
        if run.is_finished()? {
            say(&format!("{what}: already there"));
            continue;
        }
        interrupt.check()?;
        say(&what);
        let text = run.text()?;
        if let Outcome::Interrupted(epoch, by) = train(run.planned, &run.folder, &Resume::Auto, verbose, device)? {
            say(&format!("interrupted after epoch {epoch} of it; everything is saved, the same command resumes"));
            return Err(by.into());
        }
        write_atomic(&run.folder.join(FINISHED), text.as_bytes())?;
        results::Results::read(&all[..=i], reach)?.write(output)?;
    }
    Ok(())
}

/// Fails if one of `runs` does not fit on `device`, which is said before hours have passed with what does. A seed changes no size:
/// of each config one run is planned.
fn fit(runs: &mut [Run], device: &Device) -> Result<()> {
    let mut leave = BTreeMap::new();
    for run in runs {
        if let Some(encoders_leave) = leave.get(&run.name) {
            run.planned.encoders_leave = *encoders_leave;
            continue;
        }
        let memory = MemoryPlan::fitting(&mut run.planned, device).with_context(|| run.name.clone())?;
        memory.check(&run.planned, device).with_context(|| run.name.clone())?;
        leave.insert(run.name.clone(), run.planned.encoders_leave);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const TEXT: &str = "algorithm = 'ram'\nmodel = 'm'\nnum_epochs = 3\n[prompts]\ntrain = 't'\neval = 'e'\n[rewards]\ngeneval = 1.0\n[ram]\nreward_multiplier = 10.0\n";

    #[test]
    fn configs_that_are_judged_by_something_else_are_refused_by_the_first_key() {
        let names = ["a".to_string(), "b".to_string()];
        let with = |more: &str| parse("a.toml", &format!("{TEXT}{more}")).unwrap();
        judged_alike(&names, &[with(""), with("[eval]\ngrid = 4\n[optimizer]\nlr = 1e-5\n")]).unwrap();
        let e = judged_alike(&names, &[with(""), with("[eval]\nguidance_scale = 1.0\n")]).unwrap_err().to_string();
        assert!(e.starts_with("eval.guidance_scale is 4.5 in a, 1.0 in b: rewards of different"), "{e}");
        assert!(e.ends_with("--set eval.guidance_scale=VALUE makes it the same"), "{e}");
    }

    #[test]
    fn a_budget_of_seconds_needs_a_learning_rate_without_an_end() {
        let with = |more: &str| parse("a.toml", &format!("{TEXT}{more}")).unwrap();
        let raw = budgeted(with(""), Budget::Seconds(60)).unwrap();
        assert_eq!((raw.num_epochs, raw.stop.max_seconds), (UNTIL_TIME_IS_UP, 60));
        assert_eq!(budgeted(with(""), Budget::Epochs(7)).unwrap().num_epochs, 7);
        let e = budgeted(with("[optimizer]\nschedule = 'cosine'\n"), Budget::Seconds(60)).unwrap_err().to_string();
        assert!(e.starts_with("--seconds: optimizer.schedule is not 'constant'"), "{e}");
    }
}
