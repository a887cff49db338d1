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

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::ptr::null;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};

pub use driver::{Arg, DevicePtr, Driver, Facts, FunctionInfo, Swizzle, TensorMapDesc};
use driver::{Launch, Op};
use kernels::Kernels;
pub use kernels::{File, files};
use pool::{Place, Pool, Stay};
use queue::{Graphs, Pending, Tables};
use rehearsal::Rehearsal;

use super::ledger::Reserved;
use super::{DType, Ledger, with_threads, workers};

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
    /// Where memory is only counted, the books.
    ledger: Option<Arc<Ledger>>,
}

/// What a stream of work has for itself: memory that is given back comes again only in the same order.
#[derive(Default)]
struct Lane {
    pool: Pool,
    /// For how long memory is taken.
    stay: Stay,
    graphs: Graphs,
    tables: Tables,
    /// The region that is being recorded, if one is.
    pending: Option<Pending>,
}

/// What the lanes share.
#[derive(Default)]
struct Between {
    /// Buffers that were dropped on another lane than theirs, which may still use them: they wait until the lanes meet.
    strays: Vec<(usize, Place)>,
    /// Whether something is done on both now.
    are_apart: bool,
    /// The most bytes that were in use before the lanes last met.
    peak: usize,
}

/// The main lane.
const MAIN: usize = 0;

thread_local! {
    /// The device beside whose main lane this thread works, if there is one.
    static ASIDE: Cell<*const Gpu> = const { Cell::new(null()) };
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
        let has_graphs = ledger.is_none() && !std::env::var(GRAPHS).is_ok_and(|v| v == "0");
        let lane = || Mutex::new(Lane { graphs: Graphs::new(has_graphs), ..Lane::default() });
        let (kernels, lanes) = (Mutex::new(kernels), [lane(), lane()]);
        Ok(Arc::new(Self { driver, kernels, lanes, between: Mutex::default(), failed: Mutex::default(), ledger }))
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

    /// The number of the lane that this thread works on.
    fn here(&self) -> usize {
        usize::from(std::ptr::eq(ASIDE.get(), self))
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

    /// `aside` and `f`, the launches of the former beside those of the latter: it sees what was done before, and what comes
    /// after sees what it has done. Neither may write to what the other reads.
    pub fn beside<A: Send, B>(self: &Arc<Self>, aside: impl FnOnce() -> A + Send, f: impl FnOnce() -> B) -> (A, B) {
        assert_eq!(self.here(), MAIN, "only the main lane has one beside it");
        if let Some(ledger) = self.ledger() {
            // One after the other, counted as if at once.
            let (value, most) = ledger.beside(aside);
            let _held = Reserved::exactly(ledger, most);
            return (value, f());
        }
        self.meet();
        lock(&self.between).are_apart = true;
        let (forked, is_forked) = channel();
        let threads = workers();
        let done = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // With as many threads for what the processor does as this one has.
                with_threads(threads, || {
                    let _aside = Aside::begin(self);
                    drop(forked);
                    aside()
                })
            });
            // What is asked for from now on is not waited for. Nothing is sent: the sender goes.
            let _: Result<(), _> = is_forked.recv();
            let value = f();
            (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), value)
        });
        lock(&self.between).are_apart = false;
        self.meet();
        (done.0.expect("threads of a pool"), done.1)
    }

    /// Gives each lane what was dropped on the other, which is done with it.
    fn meet(&self) {
        self.attempt(|lane| lane.flush(&*self.driver));
        let strays = std::mem::take(&mut lock(&self.between).strays);
        let mut all = 0;
        for (i, lane) in self.lanes.iter().enumerate() {
            let pool = &mut lock(lane).pool;
            all += pool.mark;
            strays.iter().filter(|(of, _)| *of == i).for_each(|(_, place)| pool.put(*place, false));
            pool.mark = pool.live;
        }
        let between = &mut *lock(&self.between);
        between.peak = between.peak.max(all);
    }

    /// A buffer. Where memory is short, what is kept goes back first: this lane's, then the other's.
    fn take(&self, bytes: usize) -> Option<Place> {
        let driver = &*self.driver;
        let taken = self.attempt(|lane| {
            let mut taken = lane.take(driver, bytes).ok();
            if taken.is_none() {
                lane.flush(driver)?;
            }
            while taken.is_none() && lane.pool.trim(driver, bytes)? > 0 {
                taken = lane.take(driver, bytes).ok();
            }
            Ok(taken)
        })?;
        if taken.is_some() {
            return taken;
        }
        if !lock(&self.between).are_apart {
            self.meet();
        }
        let other = lock(&self.lanes[1 - self.here()]).pool.trim(driver, usize::MAX);
        self.attempt(|lane| {
            other?;
            lane.take(driver, bytes)
        })
    }

    /// `f`, whose memory is taken for long.
    pub fn lasting<T>(&self, f: impl FnOnce() -> T) -> T {
        let set = |stay| std::mem::replace(&mut lock(&self.lanes[self.here()]).stay, stay);
        let before = set(Stay::Lasting);
        let value = f();
        set(before);
        value
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
        let shared: std::collections::HashMap<&str, u32> = file.shared().collect();
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
        self.attempt(|lane| {
            let kernel = lock(&self.kernels).find(&*self.driver, op, entry)?;
            let block = [grid.threads, 1, 1];
            let launch = Launch { function: kernel.function, grid: grid.blocks, block, shared: kernel.shared, args };
            lane.submit(&*self.driver, Op::Launch(launch))
        });
    }

    /// Small numbers that the host knows, where a kernel can read them while the table lives.
    pub fn table<T: bytemuck::NoUninit>(self: &Arc<Self>, data: &[T]) -> Table {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let placed = self.attempt(|lane| lane.stage(&*self.driver, bytes));
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
        let map = self.attempt(|_| desc.check().and_then(|()| self.driver.tensor_map(desc)));
        Arg::Map(map.unwrap_or(driver::TensorMap([0; 16])))
    }

    /// `f`, whose launches are put off to its end, or to where something is read; the same launches are replayed as a graph
    /// when they come again. Regions do not nest: an inner one is part of the outer.
    pub fn region<T>(&self, f: impl FnOnce() -> T) -> T {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, this thread works beside the main lane.
struct Aside<'a> {
    gpu: &'a Gpu,
    before: *const Gpu,
}

impl<'a> Aside<'a> {
    fn begin(gpu: &'a Gpu) -> Self {
        let before = ASIDE.replace(gpu);
        gpu.attempt(|_| gpu.driver.fork());
        Self { gpu, before }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.gpu.attempt(|lane| {
            lane.flush(&*self.gpu.driver)?;
            self.gpu.driver.join()
        });
        ASIDE.set(self.before);
    }
}

impl Lane {
    fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Result<Place> {
        let place = self.pool.take(driver, bytes, self.stay)?;
        self.submit(driver, Op::Forget { at: place.ptr, bytes: place.bytes })?;
        Ok(place)
    }

    fn submit(&mut self, driver: &dyn Driver, op: Op) -> Result<()> {
        match &mut self.pending {
            Some(pending) => {
                pending.ops.push(op);
                Ok(())
            }
            None => {
                self.graphs.launches += u64::from(matches!(op, Op::Launch(_)));
                driver.submit(&op)
            }
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
        self.pool.settle();
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
    /// The number of its lane, and where it is, unless something has failed.
    place: Option<(usize, Place)>,
    _counted: Option<Reserved>,
}

impl Buffer {
    /// Memory of arbitrary content. After a failure there is none, and nothing is done with it.
    pub(super) fn take(gpu: &Arc<Gpu>, bytes: usize) -> Self {
        let place = gpu.take(bytes).map(|place| (gpu.here(), place));
        let counted = gpu.ledger().map(|ledger| Reserved::exactly(ledger, pool::taken(bytes) as u64));
        Self { gpu: gpu.clone(), place, _counted: counted }
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn ptr(&self) -> DevicePtr {
        self.place.map_or(0, |(_, place)| place.ptr)
    }

    /// Copies to the device from byte `first` on.
    pub(super) fn write(&self, first: usize, data: &[u8]) {
        let (gpu, to) = (&self.gpu, self.ptr() + first as u64);
        if data.is_empty() {
            return;
        }
        gpu.attempt(|lane| match lane.stage(&*gpu.driver, data)? {
            Some(from) => lane.submit(&*gpu.driver, Op::Copy { to, from, bytes: data.len() }),
            None => gpu.driver.write(to, data),
        });
    }

    /// Copies from the device; after a failure everything is NaN.
    pub(super) fn read(&self, first: usize, out: &mut [u8]) {
        let (gpu, from) = (&self.gpu, self.ptr() + first as u64);
        if out.is_empty() {
            return;
        }
        let done = gpu.attempt(|lane| {
            lane.flush(&*gpu.driver)?;
            gpu.driver.read(from, out)
        });
        if done.is_none() {
            out.fill(0xFF);
        }
    }

    /// Sets bytes.
    pub(super) fn fill(&self, first: usize, bytes: usize, byte: u8) {
        let (gpu, to) = (&self.gpu, self.ptr() + first as u64);
        if bytes > 0 {
            gpu.attempt(|lane| lane.submit(&*gpu.driver, Op::Fill { to, bytes, byte }));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some((of, place)) = self.place else { return };
        if of == self.gpu.here() {
            let lane = &mut *lock(&self.gpu.lanes[of]);
            lane.pool.put(place, lane.pending.is_some());
        } else {
            lock(&self.gpu.between).strays.push((of, place));
        }
    }
}

/// Copies bytes from one place of the device to another.
pub(crate) fn copy(gpu: &Gpu, to: DevicePtr, from: DevicePtr, bytes: usize) {
    if bytes > 0 {
        gpu.attempt(|lane| lane.submit(&*gpu.driver, Op::Copy { to, from, bytes }));
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
