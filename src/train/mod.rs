//! The training run: reads top to bottom as the algorithm.

pub mod checkpoint;
pub mod ema;
pub mod epoch;
pub mod guard;
pub mod optimizer;
pub mod report;
pub mod setup;
pub mod state;
pub mod update;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::epoch::Interrupted;
use self::guard::{Interrupt, OutputLock};
use self::report::Reporter;
use self::setup::{Planned, Setup};
use self::state::State;
use crate::config::raw::Lora as LoraKeys;
use crate::device::Tensor;
use crate::device::philox::{Key, Purpose};
use crate::io::{lora, output_folder, safetensors::write_atomic};
use crate::models::lora::Adapter;
use crate::models::mmdit::{Condition, Mmdit};

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
    Interrupted(u32),
}

/// Trains until the config's last epoch, saving everything under `output`.
///
/// # Errors
/// If the output folder is in use or cannot be written, the checkpoint does not fit, or a model, prompt or reward fails.
pub fn run(planned: Planned, output: &Path, resume: &Resume) -> Result<Outcome> {
    output_folder(output)?;
    let _lock = OutputLock::acquire(output)?;
    let interrupt = Interrupt::install()?;
    let checkpoints = output.join("checkpoints");
    let start = starting_point(&checkpoints, resume)?;

    let mut setup = planned.load()?;
    let mut state = match &start {
        None => State::new(&setup),
        Some(path) => State::from_checkpoint(&setup, &checkpoint::load(path)?)
            .with_context(|| format!("cannot resume from {}", path.display()))?,
    };
    write_atomic(&output.join("config.toml"), toml::to_string(&setup.config.raw)?.as_bytes())?;
    let mut report = Reporter::open(output, state.epoch)?;
    if let Some(path) = &start {
        report.line(&format!("resumed from {} after epoch {}", path.display(), state.epoch));
    }

    let mut saved = start.map(|_| state.epoch);
    while state.epoch < setup.config.raw.num_epochs {
        if interrupt.requested() {
            break;
        }
        // Also after a resume, if the run was stopped between saving and evaluating.
        if is_eval_due(&setup, state.epoch) && !report.has_eval(state.epoch) {
            evaluate(&mut setup, &state, &mut report, &interrupt)?;
        }
        let epoch = match setup.train_epoch(&mut state, &interrupt) {
            Ok(epoch) => epoch,
            Err(e) if e.is::<Interrupted>() => break,
            Err(e) => {
                // What was earned before the failure is not lost with it.
                save(&setup, &state, &checkpoints, &mut saved)?;
                return Err(e);
            }
        };
        report.epoch(&setup, &state, &epoch)?;
        if is_due(setup.config.raw.checkpoint.every, state.epoch) {
            save(&setup, &state, &checkpoints, &mut saved)?;
        }
    }
    if state.epoch > 0 {
        save(&setup, &state, &checkpoints, &mut saved)?;
    }
    if state.epoch < setup.config.raw.num_epochs {
        return Ok(Outcome::Interrupted(state.epoch));
    }
    if !report.has_eval(state.epoch) {
        evaluate(&mut setup, &state, &mut report, &interrupt)?;
    }
    export_lora(&setup.pipeline.transformer, &state.average, &setup.config.raw.lora, &output.join("lora"))?;
    report.finish(output)?;
    Ok(Outcome::Finished)
}

/// Whether the state after `epoch` epochs is to be evaluated.
fn is_eval_due(setup: &Setup, epoch: u32) -> bool {
    epoch == 0 || is_due(setup.config.raw.eval.every, epoch)
}

fn is_due(every: u32, epoch: u32) -> bool {
    every > 0 && epoch.is_multiple_of(every)
}

/// The checkpoint to start from, if any.
fn starting_point(checkpoints: &Path, resume: &Resume) -> Result<Option<PathBuf>> {
    let latest = checkpoint::latest(checkpoints)?;
    match (resume, latest) {
        (Resume::From(path), _) => Ok(Some(checkpoint::find(path)?)),
        (Resume::Auto, latest) => Ok(latest),
        (Resume::Never, None) => Ok(None),
        (Resume::Never, Some(path)) => {
            bail!("--resume never, but the output folder already holds {}; choose another --output-dir", path.display())
        }
    }
}

fn save(setup: &Setup, state: &State, folder: &Path, saved: &mut Option<u32>) -> Result<()> {
    if *saved != Some(state.epoch) {
        let keep = setup.config.raw.checkpoint.keep;
        checkpoint::save(folder, u64::from(state.epoch), &state.to_checkpoint(setup)?, keep)?;
        *saved = Some(state.epoch);
    }
    Ok(())
}

/// Evaluates the averaged adapter. An interrupt leaves this evaluation out; the loop then stops.
fn evaluate(setup: &mut Setup, state: &State, report: &mut Reporter, interrupt: &Interrupt) -> Result<()> {
    match setup.evaluate(&state.average, interrupt) {
        Ok(eval) => report.eval(setup, state.epoch, &eval),
        Err(e) if e.is::<Interrupted>() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Writes `adapter` as a LoRA that diffusers loads, and reads it back.
///
/// # Errors
/// If the file cannot be written, or what is read back is not what was written. Warns on stderr if the adapter
/// changes nothing.
pub fn export_lora(model: &Mmdit, adapter: &Adapter, config: &LoraKeys, folder: &Path) -> Result<()> {
    lora::save(folder, adapter, model.modules(), config.rank, config.alpha, &config.targets)?;
    let again = lora::load(folder, model.modules())?;
    let same = adapter.scale == again.scale
        && adapter.placement() == again.placement()
        && adapter.tensors().zip(again.tensors()).all(|(a, b)| a.data() == b.data());
    if !same {
        bail!("{}: reading the LoRA back gave another one", folder.display());
    }
    if !changes_output(model, &again) {
        eprintln!("warning: {}: this LoRA does not change the model's output yet", folder.display());
    }
    Ok(())
}

/// Whether the velocity at one fixed point differs with and without `adapter`.
fn changes_output(model: &Mmdit, adapter: &Adapter) -> bool {
    let c = &model.config;
    let mut x = Tensor::scratch(&[1, c.in_channels, 2 * c.patch_size, 2 * c.patch_size]);
    Key::new(0, Purpose::InitialLatent).normal(x.data_mut());
    let mut prompt_embeds = Tensor::scratch(&[1, 4, c.joint_attention_dim]);
    Key::new(1, Purpose::InitialLatent).normal(prompt_embeds.data_mut());
    let pooled_prompt_embeds = Tensor::zeros(&[1, c.pooled_projection_dim]);
    let condition =
        Condition { timestep: &[500.0], prompt_embeds: &prompt_embeds, pooled_prompt_embeds: &pooled_prompt_embeds };
    let [with, without] = [Some(adapter), None].map(|a| model.forward(&x, condition, a));
    with.data() != without.data()
}
