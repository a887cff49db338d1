//! A GPU as the ops see it: memory, tables, launches. A [driver](Driver) does them; regions of launches that repeat become
//! graphs.

pub mod cublaslt;
pub mod cuda;
pub mod driver;
mod kernels;
mod pool;
mod queue;
mod rehearsal;
#[cfg(test)]
mod tests;
pub mod vm;

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Result, anyhow};

pub use driver::{Arg, DevicePtr, Driver, Facts, FunctionInfo, Swizzle, TensorMapDesc};
use driver::{Launch, Op};
use kernels::Kernels;
pub use kernels::{File, files};
use pool::Pool;
use queue::{Graphs, Pending, Tables};
use rehearsal::Rehearsal;

use super::ledger::Reserved;
use super::{DType, Ledger};

/// `0` in this variable does every launch as it comes, for comparison with graphs.
const GRAPHS: &str = "ENGINE_GRAPHS";

/// A device with its kernels and memory.
pub struct Gpu {
    driver: Box<dyn Driver>,
    state: Mutex<State>,
    /// Where memory is only counted, the books.
    ledger: Option<Arc<Ledger>>,
}

struct State {
    kernels: Kernels,
    pool: Pool,
    graphs: Graphs,
    tables: Tables,
    /// The region that is being recorded, if one is.
    pending: Option<Pending>,
    /// The first thing that went wrong; nothing is done after it.
    failed: Option<String>,
}

/// What a device has done and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuStats {
    /// Bytes in use now.
    pub live: usize,
    /// The most bytes that were in use at once.
    pub peak: usize,
    /// Bytes kept for reuse.
    pub kept: usize,
    /// Regions that were replayed as graphs.
    pub replayed: u64,
    /// Regions that were done launch by launch.
    pub direct: u64,
}

/// How a kernel is laid over its work.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of each.
    pub threads: u32,
}

impl Grid {
    /// One dimension of blocks of 256 threads, for so many threads.
    pub fn flat(threads: usize) -> Self {
        Self { blocks: [u32::try_from(threads.div_ceil(256)).expect("a grid that fits"), 1, 1], threads: 256 }
    }

    /// As [`Grid::flat`], with a thread for every 16 bytes of `elements` of `dtype`.
    pub fn packs(elements: usize, dtype: DType) -> Self {
        Self::flat(elements.div_ceil(16 / dtype.bytes(1)))
    }

    /// Threads for `rows` rows of `width` elements of `dtype` in each of `samples`, one for every 16 bytes, as
    /// kernels/common/rows.cuh has them; and how many share a row.
    pub fn rows(samples: usize, rows: usize, width: usize, dtype: DType) -> (Self, u32) {
        const WARP: usize = 32;
        let packs = width.div_ceil(16 / dtype.bytes(1));
        assert!(packs <= 1024, "a row of {width} {dtype:?} is wider than a block");
        let (lanes, threads) = match packs {
            0..=WARP => (packs.next_power_of_two(), 256),
            _ => (packs.next_multiple_of(WARP), packs.next_multiple_of(WARP)),
        };
        (Self::of([rows.div_ceil(threads / lanes), samples, 1], threads as u32), lanes as u32)
    }

    /// Blocks of `threads` in up to three dimensions.
    pub fn of(blocks: [usize; 3], threads: u32) -> Self {
        Self { blocks: blocks.map(|b| u32::try_from(b).expect("a grid that fits")), threads }
    }
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
    /// If there are no kernels for it.
    pub fn new(driver: Box<dyn Driver>) -> Result<Arc<Self>> {
        Self::with(driver, None)
    }

    /// One like this that does nothing and takes no memory, but counts it.
    pub fn rehearsal(&self) -> Result<(Arc<Self>, Arc<Ledger>)> {
        let ledger = Arc::new(Ledger::default());
        let driver = Box::new(Rehearsal::new(self.facts().clone()));
        Ok((Self::with(driver, Some(ledger.clone()))?, ledger))
    }

    fn with(driver: Box<dyn Driver>, ledger: Option<Arc<Ledger>>) -> Result<Arc<Self>> {
        let facts = driver.facts();
        let kernels = Kernels::new(facts.capability).map_err(|e| anyhow!("{}: {e}", facts.name))?;
        let (pool, graphs, tables) = Default::default();
        let mut state = State { kernels, pool, graphs, tables, pending: None, failed: None };
        state.graphs.off = std::env::var(GRAPHS).is_ok_and(|v| v == "0");
        Ok(Arc::new(Self { driver, state: Mutex::new(state), ledger }))
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What it has done and holds.
    pub fn stats(&self) -> GpuStats {
        let State { pool, graphs, .. } = &*self.state();
        let (replayed, direct) = (graphs.replayed, graphs.direct);
        GpuStats { live: pool.live, peak: pool.peak, kept: pool.kept, replayed, direct }
    }

    /// Waits for the device, and says what went wrong since it was made.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<()> {
        let state = &mut *self.state();
        state.attempt(|s| s.flush(&*self.driver));
        state.attempt(|_| self.driver.synchronize());
        state.failed.as_ref().map_or(Ok(()), |why| Err(anyhow!("{}: {why}", self.facts().name)))
    }

    /// What the driver has made of entry `entry` of op `op`, if it compiles kernels.
    ///
    /// # Errors
    /// If there is no such kernel, or the driver refuses it.
    pub fn info(&self, op: &'static str, entry: &str) -> Result<Option<FunctionInfo>> {
        let kernel = self.state().kernels.find(&*self.driver, op, entry)?;
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
            self.state().attempt(|_| self.driver.mark(run));
            f(run);
        }
        self.state().attempt(|_| self.driver.mark(runs));
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
        let state = &mut *self.state();
        state.attempt(|s| {
            let kernel = s.kernels.find(&*self.driver, op, entry)?;
            let block = [grid.threads, 1, 1];
            let launch = Launch { function: kernel.function, grid: grid.blocks, block, shared: kernel.shared, args };
            s.submit(&*self.driver, Op::Launch(launch))
        });
    }

    /// Small numbers that the host knows, where a kernel can read them while the table lives.
    pub fn table<T: bytemuck::NoUninit>(self: &Arc<Self>, data: &[T]) -> Table {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let placed = self.state().attempt(|s| s.stage(&*self.driver, bytes));
        match placed.flatten() {
            Some(at) => Table { at, _buffer: None },
            None => {
                let buffer = Buffer::take(self, bytes.len());
                buffer.write(0, bytes);
                Table { at: buffer.ptr(), _buffer: Some(buffer) }
            }
        }
    }

    /// Encodes the layout of a tensor for bulk copies.
    pub fn tensor_map(&self, desc: &TensorMapDesc) -> Arg {
        let map = self.state().attempt(|_| desc.check().and_then(|()| self.driver.tensor_map(desc)));
        Arg::Map(map.unwrap_or(driver::TensorMap([0; 16])))
    }

    /// `f`, whose launches are put off to its end, or to where something is read; the same launches are replayed as a graph
    /// when they come again. Regions do not nest: an inner one is part of the outer.
    pub fn region<T>(&self, f: impl FnOnce() -> T) -> T {
        let outermost = {
            let state = &mut *self.state();
            let outermost = state.pending.is_none();
            state.pending.get_or_insert_default();
            outermost
        };
        let value = f();
        if outermost {
            let state = &mut *self.state();
            state.attempt(|s| s.flush(&*self.driver));
            state.pending = None;
        }
        value
    }

    /// Gives memory that is kept for reuse back to the driver.
    pub fn trim(&self) {
        let state = &mut *self.state();
        state.attempt(|s| s.flush(&*self.driver));
        state.attempt(|s| s.pool.trim(&*self.driver));
    }
}

impl State {
    /// `f` unless something has failed before; keeps its failure.
    fn attempt<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Option<T> {
        if self.failed.is_some() {
            return None;
        }
        f(self).map_err(|e| self.failed = Some(format!("{e:#}"))).ok()
    }

    fn submit(&mut self, driver: &dyn Driver, op: Op) -> Result<()> {
        match &mut self.pending {
            Some(pending) => {
                pending.ops.push(op);
                Ok(())
            }
            None => driver.submit(&op),
        }
    }

    /// Puts numbers among the tables of the region at hand, if there is one.
    fn stage(&mut self, driver: &dyn Driver, data: &[u8]) -> Result<Option<DevicePtr>> {
        let Some(pending) = &mut self.pending else { return Ok(None) };
        if let Some(at) = self.tables.place(driver, pending, data)? {
            return Ok(Some(at));
        }
        self.flush(driver)?;
        let pending = self.pending.get_or_insert_default();
        self.tables.place(driver, pending, data)
    }

    /// Does what the region at hand has put off.
    fn flush(&mut self, driver: &dyn Driver) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.pending = Some(Pending::default());
        self.tables.send(driver, &pending)?;
        self.graphs.run(driver, pending.ops)
    }
}

/// Numbers on the device for a launch or a few.
pub struct Table {
    at: DevicePtr,
    _buffer: Option<Buffer>,
}

impl From<&Table> for Arg {
    fn from(table: &Table) -> Self {
        Self::Ptr(table.at)
    }
}

/// Numbers that kernels leave for the host.
pub struct Results<T> {
    buffer: Buffer,
    count: usize,
    of: PhantomData<T>,
}

impl<T: bytemuck::Pod> Results<T> {
    /// Room for `count` numbers, of arbitrary content.
    pub fn scratch(gpu: &Arc<Gpu>, count: usize) -> Self {
        Self { buffer: Buffer::take(gpu, count * size_of::<T>()), count, of: PhantomData }
    }

    /// As [`Results::scratch`], with all bits set: integers are the largest there are.
    pub fn ones(gpu: &Arc<Gpu>, count: usize) -> Self {
        let results = Self::scratch(gpu, count);
        results.buffer.fill(0, count * size_of::<T>(), 0xFF);
        results
    }

    /// Waits for them. After a failure all their bits are set.
    pub fn read(&self) -> Vec<T> {
        let mut out = vec![T::zeroed(); self.count];
        self.buffer.read(0, bytemuck::cast_slice_mut(&mut out));
        out
    }
}

impl<T> From<&Results<T>> for Arg {
    fn from(results: &Results<T>) -> Self {
        Self::Ptr(results.buffer.ptr())
    }
}

/// Device memory, given back on drop.
pub(super) struct Buffer {
    gpu: Arc<Gpu>,
    ptr: DevicePtr,
    bytes: usize,
    _counted: Option<Reserved>,
}

impl Buffer {
    /// Memory of arbitrary content. After a failure there is none, and nothing is done with it.
    pub(super) fn take(gpu: &Arc<Gpu>, bytes: usize) -> Self {
        let taken = gpu.state().attempt(|s| {
            let at = s.pool.take(&*gpu.driver, bytes)?;
            s.submit(&*gpu.driver, Op::Forget { at, bytes: pool::taken(bytes) })?;
            Ok(at)
        });
        let ptr = taken.unwrap_or(0);
        let counted = gpu.ledger().map(|ledger| Reserved::exactly(ledger, pool::taken(bytes) as u64));
        Self { gpu: gpu.clone(), ptr, bytes, _counted: counted }
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Copies to the device from byte `first` on.
    pub(super) fn write(&self, first: usize, data: &[u8]) {
        let (gpu, to) = (&self.gpu, self.ptr + first as u64);
        if data.is_empty() {
            return;
        }
        gpu.state().attempt(|s| match s.stage(&*gpu.driver, data)? {
            Some(from) => s.submit(&*gpu.driver, Op::Copy { to, from, bytes: data.len() }),
            None => gpu.driver.write(to, data),
        });
    }

    /// Copies from the device; after a failure everything is NaN.
    pub(super) fn read(&self, first: usize, out: &mut [u8]) {
        let (gpu, from) = (&self.gpu, self.ptr + first as u64);
        if out.is_empty() {
            return;
        }
        let state = &mut *gpu.state();
        let done = state.attempt(|s| {
            s.flush(&*gpu.driver)?;
            gpu.driver.read(from, out)
        });
        if done.is_none() {
            out.fill(0xFF);
        }
    }

    /// Sets bytes.
    pub(super) fn fill(&self, first: usize, bytes: usize, byte: u8) {
        let (gpu, to) = (&self.gpu, self.ptr + first as u64);
        if bytes > 0 {
            gpu.state().attempt(|s| s.submit(&*gpu.driver, Op::Fill { to, bytes, byte }));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.ptr != 0 {
            self.gpu.state().pool.put(self.ptr, self.bytes);
        }
    }
}

/// Copies bytes from one place of the device to another.
pub(crate) fn copy(gpu: &Gpu, to: DevicePtr, from: DevicePtr, bytes: usize) {
    if bytes > 0 {
        gpu.state().attempt(|s| s.submit(&*gpu.driver, Op::Copy { to, from, bytes }));
    }
}

/// The suffix of the entries for a storage type.
pub fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::U8 => "u8",
        DType::Blocks(blocks) => blocks.name(),
    }
}

/// What a storage type is called in kernels that are told it as they run: `Type` of kernels/common/operand.cuh.
pub fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 2,
        DType::U8 | DType::Blocks(_) => panic!("{dtype:?} is not computed in"),
    }
}
