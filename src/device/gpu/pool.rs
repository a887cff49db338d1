//! Device memory that is used again, so that steady state asks the driver for none and addresses repeat.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::driver::{DevicePtr, Driver};

/// What a buffer is a multiple of: as drivers align, and enough for every vector access.
pub const STEP: usize = 256;

/// Buffers by size.
#[derive(Default)]
pub struct Pool {
    free: BTreeMap<(Stay, usize), BTreeSet<DevicePtr>>,
    /// Free ones that what has been put off may still use.
    fresh: BTreeSet<DevicePtr>,
    /// Bytes in use, at most in use since the mark was set, and kept.
    pub live: usize,
    pub mark: usize,
    pub kept: usize,
    /// How often the driver was asked for memory.
    pub allocations: u64,
}

/// How long a buffer is in use. What lasts has memory of its own: its number grows slowly, and would shift the addresses of
/// what comes and goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stay {
    #[default]
    Passing,
    Lasting,
}

/// A buffer's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub ptr: DevicePtr,
    /// What was taken.
    pub bytes: usize,
    stay: Stay,
}

/// Bytes that a buffer for `bytes` takes: sizes are an eighth of an octave apart.
pub fn taken(bytes: usize) -> usize {
    let bytes = bytes.max(1);
    let step = (bytes.next_power_of_two() / 8).max(STEP);
    bytes.div_ceil(step) * step
}

impl Pool {
    /// A buffer of at least `bytes`.
    ///
    /// # Errors
    /// If the driver has none.
    pub fn take(&mut self, driver: &dyn Driver, bytes: usize, stay: Stay) -> Result<Place> {
        let size = taken(bytes);
        // The lowest: which addresses work gets then depends on what is in use, not on what came before.
        let ptr = match self.free.get_mut(&(stay, size)).and_then(BTreeSet::pop_first) {
            Some(ptr) => {
                self.kept -= size;
                self.fresh.remove(&ptr);
                ptr
            }
            None => {
                let ptr = driver.alloc(size)?;
                self.allocations += 1;
                ptr
            }
        };
        self.live += size;
        self.mark = self.mark.max(self.live);
        Ok(Place { ptr, bytes: size, stay })
    }

    /// Keeps a buffer for the next that wants its size; `is_used` if something that was put off may still use it.
    pub fn put(&mut self, place: Place, is_used: bool) {
        self.live -= place.bytes;
        self.kept += place.bytes;
        self.free.entry((place.stay, place.bytes)).or_default().insert(place.ptr);
        if is_used {
            self.fresh.insert(place.ptr);
        }
    }

    /// Nothing is put off any more.
    pub fn settle(&mut self) {
        self.fresh.clear();
    }

    /// Gives what is kept and not used any more back to the driver, the largest first, until that is `enough` bytes: what can
    /// stay keeps its address. Says how many bytes went.
    pub fn trim(&mut self, driver: &dyn Driver, enough: usize) -> Result<usize> {
        driver.synchronize()?;
        let mut by_size: Vec<_> = self.free.iter_mut().map(|(&(_, size), places)| (size, places)).collect();
        by_size.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
        let mut gone = 0;
        for (size, places) in by_size {
            places.retain(|ptr| {
                let stays = gone >= enough || self.fresh.contains(ptr);
                if !stays {
                    driver.free(*ptr);
                    gone += size;
                }
                stays
            });
        }
        self.kept -= gone;
        Ok(gone)
    }
}
