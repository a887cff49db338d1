//! A run: from the config to the LoRA, over all epochs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::checkpoint;
use super::guard::{Interrupt, Interrupted, OutputLock};
use super::report::Reporter;
use super::setup::{Planned, Setup};
use super::state::State;
use crate::config::raw::Lora as LoraKeys;
use crate::device::philox::{Key, Purpose};
use crate::device::{Device, Tensor};
use crate::io::write::{output_folder, remove_leftovers, write_atomic};
use crate::models::lora::{AdapterBank, Adapters, Rows, Slot, file};
use crate::models::network::{Condition, Network};
use crate::ops::noise;
use crate::telemetry::{say, warn};

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
    /// All epochs are done.
    Finished,
    /// A signal stopped it after this many epochs; everything is saved.
    Interrupted(u32, Interrupted),
}

/// Trains until the config's last epoch, saving everything under `output`.
///
/// # Errors
/// If the output folder is in use or cannot be written, the checkpoint does not fit, or a model, prompt or reward fails.
/// What was learnt before the failure is saved.
pub fn run(planned: Planned, output: &Path, resume: &Resume) -> Result<Outcome> {
    // What the inputs can be wrong about comes first: then nothing has been written yet.
    let setup = planned.load(&Device::Cpu)?;
    let given = match resume {
        Resume::From(path) => Some(restore(&setup, checkpoint::find(path)?)?),
        Resume::Auto | Resume::Never => None,
    };
    output_folder(output)?;
    let _lock = OutputLock::acquire(output)?;
    let interrupt = Interrupt::install()?;
    let checkpoints = output.join("checkpoints");
    for folder in ["", "checkpoints", "samples", "lora", "tensorboard"] {
        remove_leftovers(&output.join(folder));
    }
    let start = match (given, resume) {
        (Some(given), _) => Some(given),
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
    let saved = start.as_ref().map(|(state, _)| state.epoch);
    let mut report = Reporter::open(output, saved.unwrap_or(0))?;
    if let Some((state, path)) = &start {
        say(&format!("resumed from {} after epoch {}", path.display(), state.epoch));
    }
    let state = start.map_or_else(|| State::new(&setup), |(state, _)| state);
    let mut run = Run { setup, state, report: &mut report, checkpoints, saved };
    let ended = run.epochs(&interrupt);
    // However it ended: what was earned is kept.
    let kept = run.save();
    match ended {
        Ok(()) => kept?,
        Err(e) => {
            if let Some(interrupted) = e.downcast_ref::<Interrupted>() {
                kept?;
                return Ok(Outcome::Interrupted(run.state.epoch, *interrupted));
            }
            return Err(match kept {
                Ok(()) => e,
                Err(k) => anyhow!("{e:#}; and the state could not be saved: {k:#}"),
            });
        }
    }
    let Run { setup, state, .. } = run;
    let network = &*setup.pipeline.network;
    export_lora(network, &state.bank, Slot::Average, &setup.config.raw.lora, &output.join("lora"))?;
    report.finish(output);
    Ok(Outcome::Finished)
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
    state: State,
    report: &'a mut Reporter,
    checkpoints: PathBuf,
    /// The epoch whose state is on disk.
    saved: Option<u32>,
}

impl Run<'_> {
    /// Evaluates, trains and saves until the last epoch is done and evaluated.
    fn epochs(&mut self, interrupt: &Interrupt) -> Result<()> {
        loop {
            // Also after a resume, if the run was stopped between saving and evaluating.
            if self.is_eval_due() && !self.report.has_eval(self.state.epoch) {
                let eval = self.setup.evaluate(Some((&self.state.bank, Slot::Average)), interrupt)?;
                self.report.eval(&self.setup, self.state.epoch, &eval)?;
            }
            if self.is_done() {
                return Ok(());
            }
            interrupt.check()?;
            let epoch = self.setup.train_epoch(&mut self.state, interrupt)?;
            self.report.epoch(&self.setup, &self.state, &epoch)?;
            if self.is_done() || is_due(self.setup.config.raw.checkpoint.every, self.state.epoch) {
                self.save()?;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.state.epoch >= self.setup.config.raw.num_epochs
    }

    fn is_eval_due(&self) -> bool {
        self.state.epoch == 0 || self.is_done() || is_due(self.setup.config.raw.eval.every, self.state.epoch)
    }

    /// Saves the state unless there is nothing new in it.
    fn save(&mut self) -> Result<()> {
        let epoch = self.state.epoch;
        if epoch > 0 && self.saved != Some(epoch) {
            let keep = self.setup.config.raw.checkpoint.keep;
            checkpoint::save(&self.checkpoints, u64::from(epoch), &self.state.to_checkpoint(&self.setup)?, keep)?;
            self.saved = Some(epoch);
        }
        Ok(())
    }
}

/// Whether something that happens every `every` epochs (0: never) happens after `epoch`.
fn is_due(every: u32, epoch: u32) -> bool {
    every > 0 && epoch.is_multiple_of(every)
}

/// Writes `slot` of `bank` as a LoRA that diffusers loads, and reads it back.
///
/// # Errors
/// If the file cannot be written, or what is read back is not what was written. Warns on stderr if the adapter
/// changes nothing.
pub fn export_lora(
    network: &dyn Network,
    bank: &AdapterBank,
    slot: Slot,
    config: &LoraKeys,
    folder: &Path,
) -> Result<()> {
    let modules = network.modules();
    file::save(folder, bank, slot, modules, config.rank, config.alpha, &config.targets)?;
    let again = file::load(folder, modules, network.device())?;
    let same = bank.scale() == again.scale()
        && bank.layout() == again.layout()
        && bank.numbers(slot).to_host() == again.numbers(Slot::Theta).to_host();
    if !same {
        bail!("{}: reading the LoRA back gave another one", folder.display());
    }
    if !changes_output(network, &again) {
        warn(&format!("{}: this LoRA does not change the model's output yet", folder.display()));
    }
    Ok(())
}

/// Whether the velocity at one fixed point differs with and without the trained adapter of `bank`.
fn changes_output(network: &dyn Network, bank: &AdapterBank) -> bool {
    let (sizes, device) = (network.sizes(), network.device());
    let normal = |seed, shape: &[usize]| noise::normal(device, &[Key::new(seed, Purpose::InitialLatent)], shape);
    let x = normal(0, &[1, sizes.channels, 2 * sizes.patch, 2 * sizes.patch]);
    let prompt_embeds = normal(1, &[1, 4, sizes.text]);
    let pooled_prompt_embeds = Tensor::zeros(device, &[1, sizes.pooled]);
    let condition =
        Condition { timestep: &[500.0], prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled_prompt_embeds };
    let velocity = |slot| {
        let rows = Rows::all(slot, 1);
        network.forward(&x, condition, &Adapters { bank: Some(bank), rows: &rows }).to_host()
    };
    velocity(Some(Slot::Theta)) != velocity(None)
}
