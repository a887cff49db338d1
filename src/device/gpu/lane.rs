//! Streams of work on a device: the main one, and one beside it.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::ptr::null;
use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::Result;

use super::driver::{DevicePtr, Driver, Op};
use super::pool::{Place, Pool, Stay};
use super::queue::{Graphs, Pending, Tables};
use super::{Gpu, lock};
use crate::device::ledger::Reserved;
use crate::device::{with_threads, workers};

/// What a stream of work has for itself: memory that is given back comes again only in the same order.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) pool: Pool,
    /// For how long memory is taken.
    pub(super) stay: Stay,
    pub(super) graphs: Graphs,
    pub(super) tables: Tables,
    /// The region that is being recorded, if one is.
    pub(super) pending: Option<Pending>,
}

/// What the lanes share.
#[derive(Default)]
pub(super) struct Between {
    /// Buffers that were dropped on another lane than theirs, which may still use them: they wait until the lanes meet.
    pub(super) strays: Vec<(usize, Place)>,
    /// Whether something is done on both now.
    pub(super) are_apart: bool,
    /// The most bytes that were in use before the lanes last met.
    pub(super) peak: usize,
}

/// The main lane.
const MAIN: usize = 0;

thread_local! {
    /// The device beside whose main lane this thread works, if there is one.
    static ASIDE: Cell<*const Gpu> = const { Cell::new(null()) };
}

impl Gpu {
    /// The number of the lane that this thread works on.
    pub(super) fn here(&self) -> usize {
        usize::from(std::ptr::eq(ASIDE.get(), self))
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
    pub(super) fn take(&self, bytes: usize) -> Option<Place> {
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

    pub(super) fn submit(&mut self, driver: &dyn Driver, op: Op) -> Result<()> {
        match &mut self.pending {
            Some(pending) => {
                pending.ops.push(op);
                Ok(())
            }
            None => {
                self.graphs.launches += u64::from(matches!(op, Op::Launch(_) | Op::Product(_)));
                driver.submit(&op)
            }
        }
    }

    /// Puts numbers among the tables of the region at hand, if there is one.
    pub(super) fn stage(&mut self, driver: &dyn Driver, data: &[u8]) -> Result<Option<DevicePtr>> {
        let Some(pending) = &mut self.pending else { return Ok(None) };
        if let Some(at) = self.tables.place(driver, pending, data)? {
            return Ok(Some(at));
        }
        self.flush(driver)?;
        let pending = self.pending.get_or_insert_default();
        self.tables.place(driver, pending, data)
    }

    /// Does what the region at hand has put off.
    pub(super) fn flush(&mut self, driver: &dyn Driver) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.pending = Some(Pending::default());
        self.pool.settle();
        self.tables.send(driver, &pending)?;
        self.graphs.run(driver, pending.ops)
    }
}
