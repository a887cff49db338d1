//! Device memory that is used again, so that steady state asks the driver for none and addresses repeat.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::driver::{DevicePtr, Driver};

/// What a buffer is a multiple of: as drivers align, and enough for every vector access.
pub const STEP: usize = 256;

/// Buffers by size.
#[derive(Default)]
pub struct Pool {
    free: BTreeMap<usize, BTreeSet<DevicePtr>>,
    /// Bytes in use, at most ever in use, and kept.
    pub live: usize,
    pub peak: usize,
    pub kept: usize,
}

/// Bytes that a buffer for `bytes` takes: sizes are an eighth of an octave apart.
pub fn taken(bytes: usize) -> usize {
    let bytes = bytes.max(1);
    let step = (bytes.next_power_of_two() / 8).max(STEP);
    bytes.div_ceil(step) * step
}

impl Pool {
    /// A buffer of at least `bytes`. Where memory is short, what is kept goes back first.
    pub fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Result<DevicePtr> {
        let size = taken(bytes);
        // The lowest: which addresses work gets then depends on what is in use, not on what came before.
        let found = self.free.get_mut(&size).and_then(BTreeSet::pop_first);
        let ptr = match found {
            Some(ptr) => {
                self.kept -= size;
                ptr
            }
            None => match driver.alloc(size) {
                Ok(ptr) => ptr,
                Err(_) if self.kept > 0 => {
                    self.trim(driver)?;
                    driver.alloc(size)?
                }
                Err(e) => return Err(e),
            },
        };
        self.live += size;
        self.peak = self.peak.max(self.live);
        Ok(ptr)
    }

    /// Keeps a buffer for the next that wants its size.
    pub fn put(&mut self, ptr: DevicePtr, bytes: usize) {
        let size = taken(bytes);
        self.live -= size;
        self.kept += size;
        self.free.entry(size).or_default().insert(ptr);
    }

    /// Gives everything that is kept back to the driver.
    pub fn trim(&mut self, driver: &dyn Driver) -> Result<()> {
        driver.synchronize()?;
        for ptr in std::mem::take(&mut self.free).into_values().flatten() {
            driver.free(ptr);
        }
        self.kept = 0;
        Ok(())
    }
}
