//! Where numbers live. A [`Tensor`] is a view of a [storage](Device) on one [`Device`]; [`philox`] keys the random numbers
//! that are made there.

mod arena;
mod blocks;
mod dtype;
pub mod gpu;
mod ledger;
mod mapped;
mod memory;
mod nvtx;
pub mod philox;
mod precision;
mod storage;
mod tensor;
pub mod work;
mod workers;

use std::sync::Arc;

pub use arena::{ArenaStats, poison_scratch, stats as arena_stats};
pub use blocks::Blocks;
pub use dtype::{DType, Elems};
pub use gpu::Gpu;
use gpu::cuda::{Cuda, Unusable};
pub use ledger::{Ledger, Phase};
pub use mapped::{MappedFile, check_mapped};
pub use memory::{MachineMemory, bytes, machine_memory, process_peak};
pub use nvtx::range;
pub use precision::{Precision, Wide};
pub use tensor::{MOST_AXES, Shape, Tensor};
pub use workers::{with_threads, workers};

/// Where tensors live and ops run. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// This process's memory and threads.
    #[default]
    Cpu,
    /// A GPU, or what interprets one.
    Gpu(Arc<Gpu>),
    /// Nowhere: shapes only. Ops allocate and compute nothing, and the ledger says how much memory the same work would
    /// take on the CPU. (What it would take on a GPU is counted on one that does nothing: its launch code allocates too.)
    Plan(Arc<Ledger>),
}

impl Device {
    /// A device that only counts.
    pub fn plan() -> (Self, Arc<Ledger>) {
        let ledger = Arc::new(Ledger::default());
        (Self::Plan(ledger.clone()), ledger)
    }

    /// A device that counts what work takes on this one, and its books.
    ///
    /// # Errors
    /// If there are no kernels for it.
    pub fn rehearsal(&self) -> anyhow::Result<(Self, Arc<Ledger>)> {
        match self {
            Self::Cpu | Self::Plan(_) => Ok(Self::plan()),
            Self::Gpu(gpu) => gpu.rehearsal().map(|(gpu, ledger)| (Self::Gpu(gpu), ledger)),
        }
    }

    /// What stands for a GPU that is not there.
    ///
    /// # Errors
    /// If there are no kernels for it.
    pub fn planned(chip: &gpu::Chip) -> anyhow::Result<Self> {
        Gpu::planned(chip).map(Self::Gpu)
    }

    fn ledger(&self) -> Option<&Arc<Ledger>> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => gpu.ledger(),
            Self::Plan(ledger) => Some(ledger),
        }
    }

    /// A GPU that is interpreted, with the kernels for [Hopper](gpu::HOPPER), in the order of `options`.
    ///
    /// # Errors
    /// If there are no kernels.
    pub fn vm(options: ptxvm::Options) -> anyhow::Result<Self> {
        Self::vm_of(gpu::HOPPER, options)
    }

    /// As [`Device::vm`], with the kernels for a compute capability.
    ///
    /// # Errors
    /// If there are none for it.
    pub fn vm_of(capability: (u32, u32), options: ptxvm::Options) -> anyhow::Result<Self> {
        Ok(Self::Gpu(Gpu::new(Box::new(gpu::vm::Vm::new(capability, options)))?))
    }

    /// The NVIDIA GPU of this number.
    ///
    /// # Errors
    /// Says in one line what was found and what is needed.
    pub fn cuda(ordinal: u32) -> Result<Self, Unusable> {
        let driver = Cuda::open(ordinal)?;
        Ok(Self::Gpu(Gpu::new(Box::new(driver)).map_err(|e| Unusable::new(format!("{e:#}")))?))
    }

    /// The first NVIDIA GPU if it can be computed on, else the CPU; and why, if there is one that cannot.
    pub fn auto() -> (Self, Option<Unusable>) {
        match Self::cuda(0) {
            Ok(gpu) => (gpu, None),
            Err(why) => (Self::Cpu, Some(why).filter(|why| !why.is_absent)),
        }
    }

    /// Waits for the device, and says what has failed there since it was made. What was computed since is worth nothing.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Gpu(gpu) => gpu.check(),
            Self::Cpu | Self::Plan(_) => Ok(()),
        }
    }

    /// `f`, whose launches are done as one graph if the same ones have come before.
    pub fn region<T>(&self, f: impl FnOnce() -> T) -> T {
        match self {
            Self::Gpu(gpu) => gpu.region(f),
            Self::Cpu | Self::Plan(_) => f(),
        }
    }

    /// What activations are kept in beside weights of type `weights`: on a GPU the same half precision, bf16 beside blocks, on
    /// the CPU always single.
    pub fn activations(&self, weights: DType) -> DType {
        match (self, weights) {
            (Self::Gpu(_), DType::F16 | DType::Bf16) => weights,
            (Self::Gpu(_), DType::Blocks(_)) => DType::Bf16,
            _ => DType::F32,
        }
    }

    /// Bytes of memory that nothing has yet, as far as it is known.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn free_memory(&self) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(machine_memory().map(|memory| memory.available)),
            Self::Gpu(gpu) => gpu.free_memory().map(Some),
            Self::Plan(_) => Ok(None),
        }
    }

    /// Bytes that a run takes here beside its tensors, at most.
    pub fn overhead(&self) -> u64 {
        match self {
            Self::Gpu(gpu) => gpu.overhead(),
            Self::Cpu | Self::Plan(_) => 0,
        }
    }

    /// The most bytes of tensors that were in use here at once.
    pub fn peak(&self) -> u64 {
        match (self.ledger(), self) {
            (Some(ledger), _) => ledger.phases().iter().map(|p| p.tensors).max().unwrap_or(0),
            (None, Self::Gpu(gpu)) => gpu.stats().peak as u64,
            (None, Self::Cpu | Self::Plan(_)) => arena_stats().peak as u64,
        }
    }

    /// Whether nothing is computed here.
    pub fn is_plan(&self) -> bool {
        self.ledger().is_some()
    }

    /// Whether this is a GPU that is interpreted, whose times mean nothing.
    pub fn is_interpreted(&self) -> bool {
        matches!(self, Self::Gpu(gpu) if gpu.ledger().is_none() && gpu.stream().is_none())
    }

    /// The part of equal pieces of work that is worth doing here: all of it, but for a plan the first two pieces, because
    /// later ones take no more memory; the work of the second is counted for them.
    pub fn rehearse<'a, T>(&self, pieces: &'a [T]) -> Pieces<'a, T> {
        let ledger = self.ledger().cloned();
        let most = if ledger.is_some() { 2 } else { pieces.len() };
        let later = pieces.len().saturating_sub(1) as u64;
        Pieces { pieces: pieces[..pieces.len().min(most)].iter(), ledger, later, number: 0, before: None }
    }

    /// `f`, which makes what is kept: a plan counts its work as done once, whatever it is a part of.
    pub fn once<T>(&self, f: impl FnOnce() -> T) -> T {
        let Some(ledger) = self.ledger() else { return f() };
        let before = ledger.count_as(1);
        let value = f();
        ledger.count_as(before);
        value
    }

    /// `f` of every item: pieces of a batch that do not need one another. The CPU gives each its share of the threads, so
    /// that small ops need not be divided one by one; a plan counts as many at once as there are threads.
    pub fn side_by_side<I: Send, T: Send>(&self, items: Vec<I>, f: impl Fn(I) -> T + Sync + Send) -> Vec<T> {
        match self {
            Self::Cpu => workers::share(items, f),
            Self::Gpu(_) => items.into_iter().map(f).collect(),
            Self::Plan(ledger) => ledger.side_by_side(items, f),
        }
    }

    /// `aside` and `f`, at once where that gains something: on a GPU the first has a stream of its own. Neither may write to
    /// what the other reads; what was done before is seen by both, and what comes after sees both.
    pub fn beside<A: Send, B>(&self, aside: impl FnOnce() -> A + Send, f: impl FnOnce() -> B) -> (A, B) {
        match self {
            Self::Gpu(gpu) => gpu.beside(aside, f),
            Self::Cpu | Self::Plan(_) => (aside(), f()),
        }
    }

    /// `f`, which makes tensors that stay long: on a GPU they come from memory of their own, so that the addresses of what
    /// comes and goes repeat, and with them the work.
    pub fn lasting<T>(&self, f: impl FnOnce() -> T) -> T {
        match self {
            Self::Gpu(gpu) => gpu.lasting(f),
            Self::Cpu | Self::Plan(_) => f(),
        }
    }

    /// Gives memory that is kept for reuse back to a GPU.
    pub fn trim(&self) {
        if let Self::Gpu(gpu) = self {
            gpu.trim();
        }
    }

    /// What was computed since this was last called, if this is a plan; of a CPU, matrix products alone.
    pub fn take_work(&self) -> work::Works {
        self.ledger().map(|ledger| ledger.take_work()).unwrap_or_default()
    }

    /// Begins a phase of the work, if this is a plan.
    pub fn phase(&self, name: &'static str) {
        self.ledger().into_iter().for_each(|ledger| ledger.begin(name));
    }
}

/// Pieces of work that [`Device::rehearse`] gives one by one.
pub struct Pieces<'a, T> {
    pieces: std::slice::Iter<'a, T>,
    ledger: Option<Arc<Ledger>>,
    /// How many come after the first.
    later: u64,
    number: usize,
    /// How often work counted before the second.
    before: Option<u64>,
}

impl<T> Pieces<'_, T> {
    fn restore(&mut self) {
        if let (Some(ledger), Some(before)) = (&self.ledger, self.before.take()) {
            ledger.count_as(before);
        }
    }
}

impl<'a, T> Iterator for Pieces<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        self.restore();
        let piece = self.pieces.next()?;
        if self.number == 1 {
            self.before = self.ledger.as_ref().map(|ledger| ledger.count(self.later));
        }
        self.number += 1;
        Some(piece)
    }
}

impl<T> Drop for Pieces<'_, T> {
    fn drop(&mut self) {
        self.restore();
    }
}
