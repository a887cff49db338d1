//! A GPU as the ops see it: memory, tables, launches. A [driver](Driver) does them; regions of launches that repeat become
//! graphs.

mod buffer;
mod chip;
mod cublaslt;
pub mod cuda;
pub mod driver;
mod grid;
mod kernels;
mod lane;
mod pool;
mod products;
mod queue;
mod rehearsal;
pub mod semantics;
#[cfg(test)]
mod tests;
pub mod vm;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};

pub(super) use buffer::Buffer;
pub(crate) use buffer::copy;
pub use buffer::{Results, Table};
pub use chip::{CHIPS, Chip, EXPS_PER_CLOCK};
pub use driver::{Arg, DevicePtr, Driver, Facts, FunctionInfo, Swizzle, TensorMapDesc};
use driver::{Launch, Op, TensorMap};
pub use grid::{Grid, Rows, small, suffix, type_code, vectors};
use kernels::Kernels;
pub use kernels::{File, files};
use lane::{Between, Lane};
pub use products::Products;
use queue::Graphs;
use rehearsal::Rehearsal;

use super::work::Work;
use super::{DType, Ledger};

/// The compute capability that kernels for `sm_90a` are for.
pub const HOPPER: (u32, u32) = (9, 0);

/// The least compute capability that there are kernels for.
pub const PORTABLE: (u32, u32) = (8, 0);

/// The most encoded layouts that are kept: several times what a large model asks for.
const MAPS: usize = 1 << 14;

/// `0` in this variable does every launch as it comes, for comparison with graphs.
const GRAPHS: &str = "ENGINE_GRAPHS";

/// A device with its kernels and memory.
pub struct Gpu {
    driver: Box<dyn Driver>,
    kernels: Mutex<Kernels>,
    /// The main one, and that of work that is done [beside](Gpu::beside) it. Their locks are never held at once.
    lanes: [Mutex<Lane>; 2],
    between: Mutex<Between>,
    /// The first thing that went wrong; nothing is done after it.
    failed: Mutex<Option<String>>,
    /// What multiplies.
    products: Mutex<Products>,
    /// Where memory is only counted, the books.
    ledger: Option<Arc<Ledger>>,
    /// What was encoded: a step asks for the same layouts as the one before it.
    maps: Mutex<HashMap<TensorMapDesc, TensorMap>>,
}

/// What a device has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuStats {
    /// Bytes in use now.
    pub live: usize,
    /// The most bytes that were in use at once.
    pub peak: usize,
    /// Bytes kept for reuse.
    pub kept: usize,
    /// How often the driver was asked for memory.
    pub allocations: u64,
    /// Regions that were replayed as graphs.
    pub replayed: u64,
    /// Regions that were done launch by launch.
    pub direct: u64,
    /// Launches, in regions and out of them.
    pub launches: u64,
    /// Those of them that were parts of graphs.
    pub launches_replayed: u64,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.facts().name)
    }
}

impl Gpu {
    /// The device behind a driver.
    ///
    /// # Errors
    /// If there are no kernels for it, or not the library that the environment asks for.
    pub fn new(driver: Box<dyn Driver>) -> Result<Arc<Self>> {
        Self::with(driver, None, Products::asked()?)
    }

    /// One like this that does nothing and takes no memory, but counts it.
    pub fn rehearsal(&self) -> Result<(Arc<Self>, Arc<Ledger>)> {
        let ledger = Arc::new(Ledger::default());
        let driver = Box::new(Rehearsal::new(self.facts().clone()));
        Ok((Self::with(driver, Some(ledger.clone()), self.products())?, ledger))
    }

    /// What stands for a GPU that is not there: its launch code runs, and memory and work are counted.
    ///
    /// # Errors
    /// If there are no kernels for it.
    pub fn planned(chip: &Chip) -> Result<Arc<Self>> {
        Self::with(Box::new(Rehearsal::new(chip.facts())), Some(Arc::default()), Products::asked()?)
    }

    fn with(driver: Box<dyn Driver>, ledger: Option<Arc<Ledger>>, products: Products) -> Result<Arc<Self>> {
        let facts = driver.facts();
        let kernels = Kernels::new(facts.capability).map_err(|e| anyhow!("{}: {e}", facts.name))?;
        let has_graphs = ledger.is_none() && !std::env::var(GRAPHS).is_ok_and(|v| v == "0");
        let lane = || Mutex::new(Lane { graphs: Graphs::new(has_graphs), ..Lane::default() });
        let (kernels, lanes) = (Mutex::new(kernels), [lane(), lane()]);
        let (between, failed, maps) = (Mutex::default(), Mutex::default(), Mutex::default());
        let gpu = Self { driver, kernels, lanes, between, failed, products: Mutex::default(), ledger, maps };
        gpu.choose(products)?;
        Ok(Arc::new(gpu))
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    /// Whether it runs the kernels for `sm_90a`.
    pub fn is_hopper(&self) -> bool {
        self.facts().capability == HOPPER
    }

    /// Bytes of memory that nothing has yet.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn free_memory(&self) -> Result<u64> {
        self.driver.free_memory()
    }

    /// Bytes that the driver takes beside what is allocated: an upper bound.
    pub fn overhead(&self) -> u64 {
        self.driver.overhead()
    }

    /// The books of a rehearsal.
    pub(super) fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.as_ref()
    }

    /// `f` on this thread's lane unless something has failed before; keeps its failure.
    fn attempt<T>(&self, f: impl FnOnce(&mut Lane) -> Result<T>) -> Option<T> {
        if lock(&self.failed).is_some() {
            return None;
        }
        let done = f(&mut lock(&self.lanes[self.here()]));
        done.map_err(|e| lock(&self.failed).get_or_insert_with(|| format!("{e:#}")).clone()).ok()
    }

    /// What it has done and holds.
    pub fn stats(&self) -> GpuStats {
        let mut all = GpuStats::default();
        let mut mark = 0;
        for lane in &self.lanes {
            let Lane { pool, graphs, tables, .. } = &*lock(lane);
            mark += pool.mark;
            all.live += pool.live;
            all.kept += pool.kept;
            all.allocations += pool.allocations + tables.allocations;
            all.replayed += graphs.replayed;
            all.direct += graphs.direct;
            all.launches += graphs.launches;
            all.launches_replayed += graphs.launches_replayed;
        }
        GpuStats { peak: lock(&self.between).peak.max(mark), ..all }
    }

    /// Waits for the device, and says what went wrong since it was made.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<()> {
        self.attempt(|lane| {
            lane.flush(&*self.driver)?;
            self.driver.synchronize()
        });
        lock(&self.failed).as_ref().map_or(Ok(()), |why| Err(anyhow!("{}: {why}", self.facts().name)))
    }

    /// What the driver has made of entry `entry` of op `op`, if it compiles kernels.
    ///
    /// # Errors
    /// If there is no such kernel, or the driver refuses it.
    pub fn info(&self, op: &'static str, entry: &str) -> Result<Option<FunctionInfo>> {
        let kernel = lock(&self.kernels).find(&*self.driver, op, entry)?;
        self.driver.info(kernel.function)
    }

    /// Loads a file of PTX, which need not be the one that this device would choose, and says what the driver has made of
    /// each of its entries, if it compiles them.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub fn load(&self, file: File) -> Result<Vec<(&'static str, Option<FunctionInfo>)>> {
        let shared: HashMap<&str, u32> = file.shared().collect();
        let info = |entry| {
            let shared = shared.get(entry).copied().unwrap_or(0);
            let function = self.driver.function(file.path, file.text, entry, shared)?;
            Ok((entry, self.driver.info(function)?))
        };
        file.entries().map(info).collect()
    }

    /// Seconds from the beginning of each of `runs` calls of `f` to that of the next, as the device sees them.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn time(&self, runs: usize, mut f: impl FnMut(usize)) -> Result<Vec<f64>> {
        for run in 0..runs {
            self.attempt(|_| self.driver.mark(run));
            f(run);
        }
        self.attempt(|_| self.driver.mark(runs));
        self.check()?;
        (0..runs).map(|run| self.driver.between(run, run + 1)).collect()
    }

    /// The handle of the stream that work goes to, where there is one.
    pub fn stream(&self) -> Option<usize> {
        self.driver.stream()
    }

    /// Launches entry `entry` of op `op`; a grid without blocks has nothing to do.
    pub fn launch(&self, op: &'static str, entry: &str, grid: Grid, args: impl IntoIterator<Item = Arg>) {
        if grid.blocks.contains(&0) {
            return;
        }
        let args = args.into_iter().collect();
        self.note(op, entry, None);
        self.attempt(|lane| {
            let kernel = lock(&self.kernels).find(&*self.driver, op, entry)?;
            let block = [grid.threads, 1, 1];
            let launch = Launch { function: kernel.function, grid: grid.blocks, block, shared: kernel.shared, args };
            lane.submit(&*self.driver, Op::Launch(launch))
        });
    }

    /// While what is returned lives, launches are those of `op`, whose work is `works`; if that is nothing, the bytes of
    /// the tensors that they get.
    pub(crate) fn doing(&self, op: &'static str, works: impl FnOnce() -> Vec<Work>) -> Doing {
        Doing(self.ledger.clone().inspect(|ledger| ledger.begin_op(op, works())))
    }

    /// Notes a launch where only notes are taken.
    fn note(&self, op: &'static str, entry: &str, bytes: Option<usize>) {
        if let Some(ledger) = &self.ledger {
            let in_region = lock(&self.lanes[self.here()]).pending.is_some();
            ledger.launch(op, entry, in_region, bytes);
        }
    }

    /// Encodes the layout of a tensor for bulk copies.
    pub fn tensor_map(&self, desc: &TensorMapDesc) -> Arg {
        if let Some(map) = lock(&self.maps).get(desc) {
            return Arg::Map(*map);
        }
        let Some(map) = self.attempt(|_| desc.check().and_then(|()| self.driver.tensor_map(desc))) else {
            return Arg::Map(TensorMap([0; 16]));
        };
        let maps = &mut lock(&self.maps);
        if maps.len() == MAPS {
            maps.clear();
        }
        maps.insert(desc.clone(), map);
        Arg::Map(map)
    }

    /// `f`, whose launches are put off to its end, or to where something is read; the same launches are replayed as a graph
    /// when they come again. Regions do not nest: an inner one is part of the outer.
    pub fn region<T>(&self, f: impl FnOnce() -> T) -> T {
        if self.ledger.is_none() && !lock(&self.lanes[self.here()]).graphs.is_on() {
            // Each as it comes, so that a profiler sees it where it is asked for.
            return f();
        }
        let outermost = {
            let pending = &mut lock(&self.lanes[self.here()]).pending;
            let outermost = pending.is_none();
            pending.get_or_insert_default();
            outermost
        };
        let value = f();
        if outermost {
            self.attempt(|lane| lane.flush(&*self.driver));
            lock(&self.lanes[self.here()]).pending = None;
        }
        value
    }

    /// Gives memory that is kept for reuse back to the driver.
    pub fn trim(&self) {
        self.attempt(|lane| {
            lane.flush(&*self.driver)?;
            lane.pool.trim(&*self.driver, usize::MAX)
        });
    }
}

/// An op that is being done.
pub(crate) struct Doing(Option<Arc<Ledger>>);

impl Drop for Doing {
    fn drop(&mut self) {
        self.0.iter().for_each(|ledger| ledger.end_op());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
