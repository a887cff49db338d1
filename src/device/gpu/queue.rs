//! Work that is put off until the end of a region, and done as one graph once the same work has come twice.
//!
//! A graph is a cache of a list of ops: functions, grids, addresses, scalars. What differs from one time to the next (times,
//! keys, indices) goes through tables, which are written before the graph is replayed; a list that differs otherwise is
//! simply another list.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;

use super::driver::{Arg, DevicePtr, Driver, Graph, Op};

/// Lists that are remembered, and ops of all of them: a run has a few dozen, one for every shape of a batch, and a graph takes
/// some KiB of the device for every launch.
const MOST: usize = 128;
const MOST_OPS: usize = 1 << 16;

/// What is known of lists of ops.
#[derive(Default)]
pub struct Graphs {
    seen: HashMap<u64, Known>,
    /// Ops of all lists that are remembered.
    held: usize,
    /// Whether anything is remembered and replayed.
    is_on: bool,
    /// How many lists were replayed as graphs, and how many done op by op.
    pub replayed: u64,
    pub direct: u64,
    /// Launches in the former, and all.
    pub launches_replayed: u64,
    pub launches: u64,
}

struct Known {
    ops: Vec<Op>,
    graph: Option<Graph>,
    /// How many lists had been done when it was last.
    used: u64,
}

impl Graphs {
    /// Knows no lists yet, and remembers none unless it `is_on`.
    pub fn new(is_on: bool) -> Self {
        Self { is_on, ..Self::default() }
    }

    /// Whether anything is remembered.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Does a list of ops: one by one the first time, as a graph from the second on.
    pub fn run(&mut self, driver: &dyn Driver, ops: Vec<Op>) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        if !self.is_on {
            return ops.iter().try_for_each(|op| driver.submit(op));
        }
        let (key, used) = (hash(&ops), self.replayed + self.direct);
        let launches = ops.iter().filter(|op| matches!(op, Op::Launch(_) | Op::Product(_))).count() as u64;
        self.launches += launches;
        match self.seen.get_mut(&key) {
            Some(known) if known.ops == ops => {
                known.used = used;
                let graph = match known.graph {
                    Some(graph) => graph,
                    None => *known.graph.insert(driver.capture(&ops)?),
                };
                self.replayed += 1;
                self.launches_replayed += launches;
                driver.replay(graph)
            }
            _ => {
                self.direct += 1;
                ops.iter().try_for_each(|op| driver.submit(op))?;
                self.forget(driver, key);
                self.make_room(driver, ops.len());
                if ops.len() <= MOST_OPS {
                    self.held += ops.len();
                    self.seen.insert(key, Known { ops, graph: None, used });
                }
                Ok(())
            }
        }
    }

    /// Forgets the lists that have not come for longest until there is room for another of so many ops.
    fn make_room(&mut self, driver: &dyn Driver, ops: usize) {
        while self.seen.len() >= MOST || self.held + ops > MOST_OPS {
            let Some((&oldest, _)) = self.seen.iter().min_by_key(|(_, known)| known.used) else { return };
            self.forget(driver, oldest);
        }
    }

    fn forget(&mut self, driver: &dyn Driver, key: u64) {
        if let Some(known) = self.seen.remove(&key) {
            self.held -= known.ops.len();
            known.graph.into_iter().for_each(|graph| driver.discard(graph));
        }
    }
}

fn hash(ops: &[Op]) -> u64 {
    let mut h = DefaultHasher::new();
    for op in ops {
        match op {
            Op::Launch(l) => {
                (l.function, l.grid, l.block, l.shared).hash(&mut h);
                for arg in &l.args {
                    match arg {
                        Arg::Ptr(v) | Arg::U64(v) => v.hash(&mut h),
                        Arg::U32(v) => v.hash(&mut h),
                        Arg::I32(v) => v.hash(&mut h),
                        Arg::F32(v) => v.to_bits().hash(&mut h),
                        Arg::Map(map) => map.0.hash(&mut h),
                        Arg::Bytes(bytes) => bytes.hash(&mut h),
                    }
                }
            }
            Op::Product(product) => product.hash(&mut h),
            Op::Copy { to, from, bytes } => (to, from, bytes).hash(&mut h),
            Op::Forget { at, bytes } => (at, bytes).hash(&mut h),
            Op::Fill { to, bytes, byte } => (to, bytes, byte).hash(&mut h),
        }
    }
    h.finish()
}

/// A region that is being put off.
#[derive(Default)]
pub struct Pending {
    pub ops: Vec<Op>,
    /// What the tables hold, one after another.
    staged: Vec<u8>,
}

/// Device memory for the tables of regions.
#[derive(Clone, Copy, Default)]
pub struct Tables {
    at: DevicePtr,
    bytes: usize,
    /// How often the driver was asked for memory.
    pub allocations: u64,
}

/// Tables begin at multiples of this.
const ALIGN: usize = 256;
/// The room that tables get at first.
const ROOM: usize = 1 << 18;

impl Tables {
    /// Room for a table of so many bytes in this region; `None` if there is none left, and the region must be done first.
    pub fn place(&mut self, driver: &dyn Driver, pending: &mut Pending, data: &[u8]) -> Result<Option<DevicePtr>> {
        let start = pending.staged.len().next_multiple_of(ALIGN);
        if start + data.len() > self.bytes {
            if !pending.staged.is_empty() {
                return Ok(None);
            }
            let bytes = (2 * data.len()).next_power_of_two().max(ROOM);
            let at = driver.alloc(bytes)?;
            if self.at != 0 {
                driver.synchronize()?;
                driver.free(self.at);
            }
            *self = Self { at, bytes, allocations: self.allocations + 1 };
        }
        pending.staged.resize(start, 0);
        pending.staged.extend_from_slice(data);
        Ok(Some(self.at + start as u64))
    }

    /// Sends what the region has staged.
    pub fn send(&self, driver: &dyn Driver, pending: &Pending) -> Result<()> {
        if pending.staged.is_empty() { Ok(()) } else { driver.write(self.at, &pending.staged) }
    }
}
