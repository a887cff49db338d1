//! What memory a run takes: the run itself, on a device that only counts.

use std::sync::Arc;

use anyhow::{Result, bail};

use super::guard::Interrupt;
use super::setup::{LOAD_REWARDS, Planned};
use super::state::State;
use crate::config::{Job, Resolved};
use crate::device::work::Works;
use crate::device::{Device, Ledger, Phase};
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
    /// Weights: in their files on the CPU, uploaded on a GPU.
    pub weights: Vec<Row>,
    /// Adapters, moments, embeddings: what is there all the time.
    pub state: Row,
    /// The highest moment of every phase, with the state.
    pub phases: Vec<Row>,
    /// What the device takes beside tensors.
    pub overhead: u64,
    /// The most bytes of tensors at once.
    pub tensors: u64,
    /// What an epoch of training computes; on a CPU, its matrix products alone.
    pub epoch: Works,
    /// The same of an evaluation.
    pub evaluation: Works,
}

impl MemoryPlan {
    /// The plan of a run on `device`, whose text encoders are to leave if all does not fit otherwise.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn fitting(planned: &mut Planned, device: &Device) -> Result<Self> {
        let plan = Self::of(planned, device)?;
        let is_short = device.free_memory()?.is_some_and(|available| plan.total() > available);
        // On the CPU they are in their files anyway.
        if !is_short || !matches!(device, Device::Gpu(_)) {
            return Ok(plan);
        }
        planned.encoders_leave = true;
        Self::of(planned, device)
    }

    /// Rehearses a run on `on`.
    ///
    /// # Errors
    /// If a weight file is missing or does not fit its config.
    pub fn of(planned: &Planned, on: &Device) -> Result<Self> {
        let (device, ledger) = on.rehearsal()?;
        let job = planned.config.job;
        let mut setup = planned.clone().load(&device)?;
        let mut uploaded = if matches!(on, Device::Gpu(_)) { ledger.live() } else { 0 };
        let never = Interrupt::never();
        device.phase("text encoders");
        let prompts = match job {
            Job::Train => setup.train.prompts.len() + setup.eval.prompts.len(),
            Job::Evaluate => setup.eval.prompts.len(),
        };
        setup.prompts.fill_plan(prompts)?;
        let with_encoders = ledger.live();
        setup.prompts.release();
        uploaded -= with_encoders - ledger.live();
        let mut state = State::new(&setup);
        let held = ledger.live();
        ledger.take_work();
        let mut epoch = Works::new();
        if job == Job::Train {
            setup.train_epoch(&mut state, &never)?;
            epoch = ledger.take_work();
            device.phase("checkpoint");
            let saved = state.to_checkpoint(&setup)?;
            // Written one after another.
            saved.tensors.values().for_each(|t| drop(t.to_host()));
            ledger.take_work();
        }
        setup.evaluate(Some((&state.bank, Slot::Average)), &never)?;
        Ok(Self { epoch, evaluation: ledger.take_work(), ..Self::from(&ledger, uploaded, held, on.overhead()) })
    }

    /// What the books say of a run whose weights took `uploaded` bytes of tensors, and with all that stays `held`.
    fn from(ledger: &Arc<Ledger>, uploaded: u64, held: u64, overhead: u64) -> Self {
        let row = |what: &str, bytes| Row { what: what.into(), bytes };
        let phases = ledger.phases();
        let of_rewards = |p: &&Phase| p.name == LOAD_REWARDS;
        let (mapped, rewards_mapped): (u64, u64) =
            (phases.iter().map(|p| p.mapped).sum(), phases.iter().filter(of_rewards).map(|p| p.mapped).sum());
        let (all, rewards, place) = match uploaded {
            0 => (mapped, rewards_mapped, "mapped from files"),
            _ => (uploaded, phases.iter().filter(of_rewards).map(|p| p.left).sum(), "on the device"),
        };
        let mut weights = vec![row(&format!("weights ({place})"), all - rewards)];
        if rewards > 0 {
            weights.push(row(&format!("reward models ({})", place.trim_end_matches(" from files")), rewards));
        }
        // The text encoders', where they leave, are among what the phases take.
        let shown = phases.iter().filter(|p| !p.name.starts_with("load"));
        Self {
            weights,
            state: row("adapters, moments, embeddings", held - uploaded),
            overhead,
            epoch: Works::new(),
            evaluation: Works::new(),
            tensors: phases.iter().map(|p| p.tensors).max().unwrap_or(0),
            phases: shown.map(|p| row(p.name, p.total - uploaded)).collect(),
        }
    }

    /// Bytes at the highest moment.
    pub fn total(&self) -> u64 {
        let highest = self.phases.iter().map(|r| r.bytes).max().unwrap_or(0);
        self.weights.iter().map(|r| r.bytes).sum::<u64>() + highest.max(self.state.bytes) + self.overhead
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
        if self.overhead > 0 {
            out += &line("kernels and graphs, at most", self.overhead);
        }
        out + &line("total", self.total())
    }

    /// Fails if `device` has less memory than `planned` needs, as far as it says.
    ///
    /// # Errors
    /// Names the settings to change: the nearest batch sizes and `train.activation_checkpointing` that fit, if any do.
    pub fn check(&self, planned: &Planned, device: &Device) -> Result<()> {
        let Some(available) = device.free_memory()?.filter(|available| self.total() > *available) else {
            return Ok(());
        };
        let (job, room) = (planned.config.job, Room { device, available });
        let choice = match job {
            Job::Train => smaller_training(room, planned)?,
            Job::Evaluate => smaller_evaluation(room, planned)?,
        };
        let choice = choice.unwrap_or_else(|| {
            "no smaller batch fits either: use fewer images, a smaller resolution or a smaller model".into()
        });
        let what = if job == Job::Train { "run" } else { "evaluation" };
        let place = if let Device::Gpu(gpu) = device { format!(" on {gpu:?}") } else { String::new() };
        bail!("the {what} needs {}, {} are available{place}; {choice}", bytes(self.total()), bytes(available))
    }
}

/// Where a run must fit.
#[derive(Clone, Copy)]
struct Room<'a> {
    device: &'a Device,
    available: u64,
}

impl Room<'_> {
    /// Whether `planned` with `change` fits.
    fn fits(self, planned: &Planned, change: impl FnOnce(&mut Resolved)) -> Result<bool> {
        let mut smaller = planned.clone();
        change(&mut smaller.config);
        Ok(MemoryPlan::of(&smaller, self.device)?.total() <= self.available)
    }
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
fn smaller_training(room: Room, planned: &Planned) -> Result<Option<String>> {
    let (r, raw) = (&planned.config, &planned.config.raw);
    let (train, sampled) = (raw.train.batch_size, raw.rollout.batch_size);
    let least = |r: &mut Resolved, sampled: usize, policy: Checkpointing, batch: usize| {
        r.raw.train.batch_size = batch;
        r.raw.train.activation_checkpointing = policy;
        r.raw.rollout.batch_size = sampled;
    };
    // The sampling batch with which the smallest update fits.
    let try_sampled = |n| room.fits(planned, |r| least(r, n, Checkpointing::Block, 1));
    let Some(sampled_now) = largest(sampled, r.images, try_sampled)? else { return Ok(None) };
    let now = raw.train.activation_checkpointing;
    let policies = [(now, ""), (Checkpointing::Selective, "selective"), (Checkpointing::Block, "block")];
    for (policy, name) in policies {
        let try_batch = |n| room.fits(planned, |r| least(r, sampled_now, policy, n));
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
fn smaller_evaluation(room: Room, planned: &Planned) -> Result<Option<String>> {
    let most = planned.config.raw.rollout.batch_size - 1;
    // An evaluation's batches need not be equal.
    let batch = largest(most, 0, |n| room.fits(planned, |r| r.raw.rollout.batch_size = n))?;
    Ok(batch.map(|batch| format!("--batch-size {batch} fits")))
}
