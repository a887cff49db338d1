//! A run: from the config to the LoRA, over all epochs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::best::{self, Best, Evaluation};
use super::checkpoint;
use super::drift;
use super::guard::{Interrupt, Interrupted, OutputLock};
use super::report::{Reporter, page};
use super::setup::{Planned, Setup};
use super::speed::Speed;
use super::state::State;
use crate::config::raw::Lora as LoraKeys;
use crate::device::{Device, Tensor};
use crate::io::write::{output_folder, remove_leftovers, write_atomic};
use crate::models::lora::{AdapterBank, Module, Slot, file};
use crate::ops::norm;
use crate::report::{ABOUT, About};
use crate::rewards::Unavailable;
use crate::telemetry::{say, warn};

/// The file of a checkpoint with lines that the log could not take: state and log are complete only together.
const UNWRITTEN: &str = "unwritten.jsonl";

/// Where a run continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From the latest checkpoint in the output folder, if there is one.
    Auto,
    /// From the beginning; refuses a folder that already holds checkpoints.
    Never,
    /// From this checkpoint.
    From(PathBuf),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done, or a rule of `[stop]` has ended the run.
    Finished,
    /// A signal stopped it after this many epochs; everything is saved.
    Interrupted(u32, Interrupted),
}

/// Trains on `device` until the config's last epoch, saving everything under `output`. An epoch prints a line; `verbose`, all
/// that is known of it.
///
/// # Errors
/// If the output folder is in use or cannot be written, the checkpoint does not fit, or a model, prompt or reward fails.
/// What was learnt before the failure is saved.
pub fn run(planned: Planned, output: &Path, resume: &Resume, verbose: bool, device: &Device) -> Result<Outcome> {
    // What the inputs can be wrong about comes first: then nothing has been written yet.
    let mut speed = Speed::of(&planned, device)?;
    let setup = planned.load(device)?;
    let given = match resume {
        Resume::From(path) => Some(restore(&setup, checkpoint::find(path)?)?),
        Resume::Auto | Resume::Never => None,
    };
    output_folder(output)?;
    let lock = OutputLock::acquire(output)?;
    let interrupt = Interrupt::install()?;
    let checkpoints = output.join("checkpoints");
    best::settle(output)?;
    for folder in ["", "checkpoints", "samples", "lora", "tensorboard"] {
        remove_leftovers(&output.join(folder));
    }
    let start = match (given, resume) {
        (Some((state, path)), _) => {
            // From now on this is where the run stands, whatever ends it: the log is about to forget what came later.
            if !checkpoint::make_latest(&checkpoints, &path)? {
                let keep = setup.config.raw.checkpoint.keep;
                checkpoint::save(&checkpoints, u64::from(state.epoch), &state.to_checkpoint(&setup)?, keep)?;
            }
            Some((state, path))
        }
        (None, resume) => match checkpoint::latest(&checkpoints)? {
            Some(path) if *resume == Resume::Never => bail!(
                "--resume never, but the output folder already holds {}; choose another --output-dir",
                path.display()
            ),
            Some(path) => Some(restore(&setup, path)?),
            None => None,
        },
    };

    write_atomic(&output.join("config.toml"), toml::to_string(&setup.config.raw)?.as_bytes())?;
    write_atomic(&output.join(ABOUT), &serde_json::to_vec_pretty(&About::here(device))?)?;
    let saved = start.as_ref().map(|(state, _)| state.epoch);
    let unwritten = start.as_ref().and_then(|(_, path)| std::fs::read_to_string(path.join(UNWRITTEN)).ok());
    let mut report = Reporter::open(output, saved.unwrap_or(0), &unwritten.unwrap_or_default())?.verbose(verbose);
    if let Some((state, path)) = &start {
        say(&format!("resumed from {} after epoch {}", path.display(), state.epoch));
        checkpoint::finish(&checkpoints, u64::from(state.epoch), setup.config.raw.checkpoint.keep)?;
    }
    let state = start.map_or_else(|| State::new(&setup), |(state, _)| state);
    if state.epoch < setup.config.raw.num_epochs {
        speed = speed.measured(&setup);
        say(&speed.describe());
    }
    let best = Best::of(report.earlier(), &setup);
    if let Some(line) = best::stays(output, state.epoch) {
        say(&line);
    }
    let mut run =
        Run { setup, speed, state, best, stopped: None, report: &mut report, output, checkpoints, saved, lock: &lock };
    let ended = run.epochs(&interrupt);
    // However it ended: what was earned is kept.
    let kept = run.save();
    match ended {
        Ok(()) => kept?,
        Err(e) => {
            // Where the folder is gone, whatever failed did so because of that.
            lock.check()?;
            if let Some(interrupted) = e.downcast_ref::<Interrupted>() {
                kept?;
                say_where_the_page_is(output);
                return Ok(Outcome::Interrupted(run.state.epoch, *interrupted));
            }
            return Err(match kept {
                Ok(()) if e.downcast_ref::<Unavailable>().is_some() => {
                    let epoch = run.state.epoch;
                    say(&format!("stopped after epoch {epoch}; everything is saved, the same command resumes"));
                    say_where_the_page_is(output);
                    e
                }
                Ok(()) => e,
                Err(k) => anyhow!("{e:#}; and the state could not be saved: {k:#}"),
            });
        }
    }
    let Run { setup, state, best, stopped, .. } = run;
    let modules = setup.pipeline.network.modules();
    export_lora(modules, &state.bank, Slot::Average, &setup.config.raw.lora, &output.join("lora"))?;
    best.results().iter().for_each(|line| say(line));
    if stopped.is_some() {
        say(&format!("RESULT stopped_after_epoch={}", state.epoch));
    }
    report.finish(output, &setup.device);
    say_where_the_page_is(output);
    Ok(Outcome::Finished)
}

/// Writes the page about the run in `output` and says where it is.
fn say_where_the_page_is(output: &Path) {
    if let Some(page) = page(output) {
        say(&format!("report: {}", page.display()));
    }
}

/// The state in the checkpoint at `path`, and `path`.
fn restore(setup: &Setup, path: PathBuf) -> Result<(State, PathBuf)> {
    let cannot = |hint: &str| format!("cannot resume from {}{hint}", path.display());
    let saved = checkpoint::load(&path).with_context(|| {
        let whole = path.parent().and_then(|folder| checkpoint::newest_whole(folder).ok().flatten());
        cannot(&whole.map(|p| format!(" (--resume {} would work)", p.display())).unwrap_or_default())
    })?;
    let state = State::from_checkpoint(setup, &saved).with_context(|| cannot(""))?;
    Ok((state, path))
}

/// A run between its first and last epoch.
struct Run<'a> {
    setup: Setup,
    speed: Speed,
    state: State,
    best: Best,
    /// Why the run ends before its last epoch.
    stopped: Option<String>,
    report: &'a mut Reporter,
    output: &'a Path,
    checkpoints: PathBuf,
    /// The epoch whose state is on disk.
    saved: Option<u32>,
    lock: &'a OutputLock,
}

impl Run<'_> {
    /// Evaluates, trains and saves until the last epoch is done and evaluated.
    fn epochs(&mut self, interrupt: &Interrupt) -> Result<()> {
        loop {
            // Before the last evaluation is due, which a run that ends now is to have.
            let rules = &self.setup.config.raw.stop;
            let too_far = || drift::gone_too_far(rules, self.report.last_epoch()?);
            let time_is_up = || best::time_is_up(rules, self.report.elapsed());
            let reason = self.best.out_of_patience(rules).or_else(time_is_up).or_else(too_far);
            self.stop(reason);
            // Also after a resume, if the run was stopped between saving and evaluating.
            if self.is_eval_due() && !self.report.has_eval(self.state.epoch) {
                self.evaluate(interrupt)?;
                let reason = self.best.out_of_patience(&self.setup.config.raw.stop);
                self.stop(reason);
            }
            if self.is_done() {
                return Ok(());
            }
            interrupt.check()?;
            let epoch = self.setup.train_epoch(&mut self.state, interrupt)?;
            self.lock.check()?;
            self.report.epoch(&self.setup, &self.speed, &self.state, &epoch)?;
            if self.is_done() || is_due(self.setup.config.raw.checkpoint.every, self.state.epoch) {
                self.save()?;
            }
        }
    }

    /// Evaluates the average, keeps it if no evaluation was better, and reports.
    fn evaluate(&mut self, interrupt: &Interrupt) -> Result<()> {
        let (setup, epoch) = (&mut self.setup, self.state.epoch);
        let eval = setup.evaluate(Some((&self.state.bank, Slot::Average)), interrupt)?;
        self.lock.check()?;
        let each = setup.config.raw.eval.num_images_per_prompt;
        let Some(evaluation) = Evaluation::new(epoch, &eval.scores, each) else {
            let (missing, why) = eval.missing().expect("only what is missing makes it incomplete");
            warn(&format!(
                "the evaluation after epoch {epoch} does not count: {missing} pictures have no score; {why}"
            ));
            return Ok(());
        };
        let standing = self.best.take(evaluation);
        if standing.is_best {
            best::write(self.output, setup, &self.state.bank, &standing)?;
        }
        self.report.eval(setup, epoch, &eval, &standing)?;
        if let Some(line) = standing.news(&setup.config.raw.optimizer, self.output) {
            say(&line);
        }
        page(self.output);
        Ok(())
    }

    /// Ends the run early if there is a reason to.
    fn stop(&mut self, reason: Option<String>) {
        if let Some(reason) = reason.filter(|_| !self.is_done()) {
            say(&format!("stopped after epoch {}: {reason}", self.state.epoch));
            self.stopped = Some(reason);
        }
    }

    fn is_done(&self) -> bool {
        self.state.epoch >= self.setup.config.raw.num_epochs || self.stopped.is_some()
    }

    fn is_eval_due(&self) -> bool {
        self.state.epoch == 0 || self.is_done() || is_due(self.setup.config.raw.eval.every, self.state.epoch)
    }

    /// Saves the state unless there is nothing new in it.
    fn save(&mut self) -> Result<()> {
        let epoch = self.state.epoch;
        if epoch > 0 && self.saved != Some(epoch) {
            self.lock.check()?;
            let keep = self.setup.config.raw.checkpoint.keep;
            let saved = self.state.to_checkpoint(&self.setup)?;
            let path = checkpoint::save(&self.checkpoints, u64::from(epoch), &saved, keep)?;
            if !self.report.unwritten().is_empty() {
                write_atomic(&path.join(UNWRITTEN), self.report.unwritten().as_bytes())?;
            }
            self.saved = Some(epoch);
        }
        Ok(())
    }
}

/// Whether something that happens every `every` epochs (0: never) happens after `epoch`.
fn is_due(every: u32, epoch: u32) -> bool {
    every > 0 && epoch.is_multiple_of(every)
}

/// Writes `slot` of `bank`, whose factors are for `modules`, as a LoRA that diffusers loads, and reads it back.
///
/// # Errors
/// If the file cannot be written, or what is read back is not what was written. Warns on stderr if the adapter
/// changes nothing.
pub fn export_lora(modules: &[Module], bank: &AdapterBank, slot: Slot, config: &LoraKeys, folder: &Path) -> Result<()> {
    if !save_lora(modules, bank, slot, config, folder)? {
        warn(&format!("{}: this LoRA does not change the model's output yet", folder.display()));
    }
    Ok(())
}

/// As [`export_lora`] but for the warning: says whether the adapter changes anything.
///
/// # Errors
/// As that.
pub(super) fn save_lora(
    modules: &[Module],
    bank: &AdapterBank,
    slot: Slot,
    config: &LoraKeys,
    folder: &Path,
) -> Result<bool> {
    file::save(folder, bank, slot, modules, config.rank, config.alpha, &config.targets)?;
    let again = file::load(folder, modules, &Device::Cpu)?;
    let same = bank.scale() == again.scale()
        && bank.layout() == again.layout()
        && bank.numbers(slot).to_host() == again.numbers(Slot::Theta).to_host();
    if !same {
        bail!("{}: reading the LoRA back gave another one", folder.display());
    }
    let is_zero = |t: &Tensor| norm::sum_of_squares(t) == 0.0;
    Ok(!(0..modules.len()).filter_map(|i| again.factor(Slot::Theta, i)).all(|f| is_zero(&f.a) || is_zero(&f.b)))
}
