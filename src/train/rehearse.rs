//! A few groups through every stage of a run, in a folder that is thrown away: what would fail after hours fails now.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::best::{Best, Evaluation};
use super::checkpoint;
use super::guard::Interrupt;
use super::report::{Reporter, page};
use super::run::save_lora;
use super::setup::{Planned, Setup, check};
use super::speed::{Speed, peak_memory};
use super::state::State;
use crate::config::raw::Stop;
use crate::config::{Job, Resolved};
use crate::device::Device;
use crate::models::lora::Slot;
use crate::telemetry::bytes;

/// What one stage of a run took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Its name.
    pub what: String,
    /// Seconds; rollout, decode and reward go on beside each other.
    pub seconds: f64,
    /// Images that went through it, if any did.
    pub images: Option<usize>,
    /// The most bytes in use until its end: of a GPU its tensors, else all that the process had.
    pub peak_memory: u64,
}

/// The run `whole` with as few groups as fill whole batches, and one held-out prompt; all else stays.
///
/// # Errors
/// As [`check`].
pub fn shortened(whole: &Resolved) -> Result<Planned> {
    let mut short = whole.raw.clone();
    let each = short.rollout.num_prompts_per_epoch;
    let fills = |groups: &usize| {
        (groups * whole.images / each).is_multiple_of(short.rollout.batch_size)
            && (groups * whole.points / each).is_multiple_of(short.train.batch_size)
    };
    let groups = (1..each).find(fills);
    short.rollout.num_prompts_per_epoch = groups.unwrap_or(each);
    (short.num_epochs, short.eval.num_prompts) = (1, 1);
    short.optimizer.warmup = 0;
    short.stop = Stop::default();
    check(short, Job::Train)
}

/// Goes through all stages of the run `planned`, which is [`shortened`], and writes what a run would to `folder`.
///
/// # Errors
/// What a run would fail of.
pub fn rehearse(planned: Planned, folder: &Path, device: &Device) -> Result<Vec<Stage>> {
    let mut stages = Stages { all: Vec::new(), last: Instant::now(), device: device.clone() };
    let speed = Speed::of(&planned, device)?;
    let mut setup = planned.load(device)?;
    let mut state = State::new(&setup);
    let mut report = Reporter::open(folder, 0, "")?;
    let mut best = Best::of(report.earlier(), &setup);
    let never = Interrupt::never();
    stages.end("load", None);

    let epoch = setup.train_epoch(&mut state, &never)?;
    report.epoch(&setup, &speed, &state, &epoch)?;
    let images = setup.config.images;
    let of_rewards = epoch.reward_ms.iter().map(|(name, ms)| (format!("reward {name}"), 1e-3 * ms * images as f64));
    stages.end_epoch(epoch.seconds.iter().map(|(what, s)| (what.to_string(), *s)).chain(of_rewards), images);
    ensure!(epoch.skipped_groups.is_none(), "a reward stayed away: {}", epoch.skipped_groups.unwrap_or_default().1);
    ensure!(epoch.skipped.is_none(), "the update was skipped: {} is not finite", epoch.skipped.unwrap_or_default());

    let saved = state.to_checkpoint(&setup)?;
    let path = checkpoint::save(&folder.join("checkpoints"), 1, &saved, setup.config.raw.checkpoint.keep)?;
    State::from_checkpoint(&setup, &checkpoint::load(&path)?)?;
    stages.end("checkpoint", None);

    let eval = setup.evaluate(Some((&state.bank, Slot::Average)), &never)?;
    let each = setup.config.raw.eval.num_images_per_prompt;
    let evaluation = Evaluation::new(1, &eval.scores, each).context("the evaluation could not be judged")?;
    let standing = best.take(evaluation);
    super::best::write(folder, &setup, &state.bank, &standing)?;
    report.eval(&setup, 1, &eval, &standing)?;
    page(folder);
    stages.end("evaluation", Some(eval.images.len()));

    export(&setup, &state, folder)?;
    stages.end("export", None);
    Ok(stages.all)
}

/// Writes the LoRA and reads it back.
fn export(setup: &Setup, state: &State, folder: &Path) -> Result<()> {
    let (modules, lora) = (setup.pipeline.network.modules(), &setup.config.raw.lora);
    save_lora(modules, &state.bank, Slot::Average, lora, &folder.join("lora")).map(drop)
}

/// The stages so far.
struct Stages {
    all: Vec<Stage>,
    last: Instant,
    device: Device,
}

impl Stages {
    fn end(&mut self, what: &str, images: Option<usize>) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.all.push(Stage { what: what.into(), seconds, images, peak_memory: peak_memory(&self.device) });
        self.last = Instant::now();
    }

    /// The phases of an epoch of `images` images.
    fn end_epoch(&mut self, seconds: impl Iterator<Item = (String, f64)>, images: usize) {
        let peak_memory = peak_memory(&self.device);
        self.all.extend(seconds.map(|(what, seconds)| Stage { what, seconds, images: Some(images), peak_memory }));
        self.last = Instant::now();
    }
}

/// A line for each of `stages`.
pub fn table(stages: &[Stage]) -> String {
    let line = |stage: &Stage| {
        let each = stage.images.map(|n| format!("{:>10.0} ms/image", 1e3 * stage.seconds / n as f64));
        format!(
            "  {:<24} {:>8.2} s  {:>10}{}\n",
            stage.what,
            stage.seconds,
            bytes(stage.peak_memory),
            each.unwrap_or_default()
        )
    };
    stages.iter().map(line).collect()
}
