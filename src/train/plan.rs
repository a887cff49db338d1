//! What memory a run takes: the run itself, on a device that only counts.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::guard::Interrupt;
use super::setup::Planned;
use super::state::State;
use crate::config::{Job, Resolved};
use crate::device::{Device, Ledger, machine_memory};
use crate::models::lora::Slot;
use crate::models::network::Checkpointing;
use crate::telemetry::bytes;

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it holds.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
}

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights that stay in their files.
    pub weights: Vec<Row>,
    /// Adapters, moments, embeddings: what is there all the time.
    pub state: Row,
    /// The highest moment of every phase, with the state.
    pub phases: Vec<Row>,
    /// The most bytes of tensors at once.
    pub tensors: u64,
}

impl MemoryPlan {
    /// Rehearses a run.
    ///
    /// # Errors
    /// If a weight file is missing or does not fit its config.
    pub fn of(planned: &Planned) -> Result<Self> {
        let (device, ledger) = Device::plan();
        let job = planned.config.job;
        let mut setup = planned.clone().load(&device)?;
        let (reward_weights, all_weights) = (ledger.mapped_in("load rewards"), ledger.mapped());
        let never = Interrupt::never();
        device.phase("text encoders");
        let prompts = match job {
            Job::Train => setup.train.prompts.len() + setup.eval.prompts.len(),
            Job::Evaluate => setup.eval.prompts.len(),
        };
        setup.prompts.fill_plan(&device, prompts)?;
        let mut state = State::new(&setup);
        let held = ledger.live();
        if job == Job::Train {
            setup.train_epoch(&mut state, &never)?;
            device.phase("checkpoint");
            let saved = state.to_checkpoint(&setup)?;
            // Written one after another.
            saved.tensors.values().for_each(|t| drop(t.to_host()));
        }
        setup.evaluate(Some((&state.bank, Slot::Average)), &never)?;
        Ok(Self::from(&ledger, held, reward_weights, all_weights))
    }

    fn from(ledger: &Arc<Ledger>, held: u64, reward_weights: u64, all_weights: u64) -> Self {
        let row = |what: &str, bytes| Row { what: what.into(), bytes };
        let mut weights = vec![row("weights (mapped from files)", all_weights - reward_weights)];
        if reward_weights > 0 {
            weights.push(row("reward models (mapped)", reward_weights));
        }
        let phases = ledger.phases();
        let shown = phases.iter().filter(|p| !p.name.starts_with("load"));
        Self {
            weights,
            state: row("adapters, moments, embeddings", held),
            tensors: phases.iter().map(|p| p.tensors).max().unwrap_or(0),
            phases: shown.map(|p| row(p.name, p.total)).collect(),
        }
    }

    /// Bytes at the highest moment.
    pub fn total(&self) -> u64 {
        let highest = self.phases.iter().map(|r| r.bytes).max().unwrap_or(0);
        self.weights.iter().map(|r| r.bytes).sum::<u64>() + highest.max(self.state.bytes)
    }

    /// The plan as a table.
    pub fn table(&self) -> String {
        let line = |what: &str, n: u64| format!("  {what:<32} {:>12}\n", bytes(n));
        let mut out: String = self.weights.iter().map(|r| line(&r.what, r.bytes)).collect();
        out += &line(&self.state.what, self.state.bytes);
        let highest = self.phases.iter().map(|r| r.bytes).max().unwrap_or(0);
        for r in &self.phases {
            let mark = if r.bytes == highest { " (highest)" } else { "" };
            out += &line(&format!("  during {}{mark}", r.what), r.bytes);
        }
        out + &line("total", self.total())
    }

    /// Fails if the machine has less memory than `planned` needs, as far as it says.
    ///
    /// # Errors
    /// Names the settings to change: the nearest batch sizes and `train.activation_checkpointing` that fit, if any do.
    pub fn check(&self, planned: &Planned) -> Result<()> {
        machine_memory().map_or(Ok(()), |memory| self.check_against(memory.available, planned))
    }

    fn check_against(&self, available: u64, planned: &Planned) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let job = planned.config.job;
        let choice = match job {
            Job::Train => smaller_training(available, planned)?,
            Job::Evaluate => smaller_evaluation(available, planned)?,
        };
        let choice = choice.unwrap_or_else(|| {
            "no smaller batch fits either: use fewer images, a smaller resolution or a smaller model".into()
        });
        let what = if job == Job::Train { "run" } else { "evaluation" };
        bail!("the {what} needs {}, {} are available; {choice}", bytes(self.total()), bytes(available))
    }
}

/// Whether `planned` with `change` fits.
fn fits(available: u64, planned: &Planned, change: impl FnOnce(&mut Resolved)) -> Result<bool> {
    let mut smaller = planned.clone();
    change(&mut smaller.config);
    Ok(MemoryPlan::of(&smaller)?.total() <= available)
}

/// The largest divisor of `of` up to `most` for which `fits`; what fits at one size fits at every smaller one.
fn largest(most: usize, of: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    let sizes: Vec<usize> = (1..=most).filter(|n| of.is_multiple_of(*n)).collect();
    let (mut low, mut high) = (0, sizes.len());
    while low < high {
        let middle = (low + high) / 2;
        if fits(sizes[middle])? { low = middle + 1 } else { high = middle }
    }
    Ok(low.checked_sub(1).map(|i| sizes[i]))
}

/// The largest batches that fit, with as little recomputation as it takes; the sampling batch is touched last.
fn smaller_training(available: u64, planned: &Planned) -> Result<Option<String>> {
    let (r, raw) = (&planned.config, &planned.config.raw);
    let (train, sampled) = (raw.train.batch_size, raw.rollout.batch_size);
    let least = |r: &mut Resolved, sampled: usize, policy: Checkpointing, batch: usize| {
        r.raw.train.batch_size = batch;
        r.raw.train.activation_checkpointing = policy;
        r.raw.rollout.batch_size = sampled;
    };
    // The sampling batch with which the smallest update fits.
    let try_sampled = |n| fits(available, planned, |r| least(r, n, Checkpointing::Block, 1));
    let Some(sampled_now) = largest(sampled, r.images, try_sampled)? else { return Ok(None) };
    let now = raw.train.activation_checkpointing;
    let policies = [(now, ""), (Checkpointing::Selective, "selective"), (Checkpointing::Block, "block")];
    for (policy, name) in policies {
        let try_batch = |n| fits(available, planned, |r| least(r, sampled_now, policy, n));
        let Some(batch) = largest(train, r.points, try_batch)? else { continue };
        let mut keys = Vec::new();
        keys.extend((batch != train).then(|| format!("train.batch_size = {batch}")));
        keys.extend((!name.is_empty()).then(|| format!("train.activation_checkpointing = \"{name}\"")));
        keys.extend((sampled_now != sampled).then(|| format!("rollout.batch_size = {sampled_now}")));
        return Ok(Some(format!("{} fits", keys.join(" and "))));
    }
    Ok(None)
}

/// The largest sampling batch that fits.
fn smaller_evaluation(available: u64, planned: &Planned) -> Result<Option<String>> {
    let most = planned.config.raw.rollout.batch_size - 1;
    // An evaluation's batches need not be equal.
    let batch = largest(most, 0, |n| fits(available, planned, |r| r.raw.rollout.batch_size = n))?;
    Ok(batch.map(|batch| format!("--batch-size {batch} fits")))
}
