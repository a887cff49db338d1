//! Recycled `f32` buffers, so that steady state asks the system for no memory and touches no fresh page.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

/// Below this many elements the allocator's own caches are as good.
const SMALL: usize = 4096;

/// What the pool has handed out and holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers in use now.
    pub live: usize,
    /// The most that was ever in use at once.
    pub peak: usize,
    /// Buffers kept for reuse.
    pub free: usize,
    /// How many times the system had to be asked for a new buffer.
    pub allocations: usize,
}

#[derive(Default)]
struct Pool {
    free: HashMap<usize, Vec<Vec<f32>>>,
    stats: PoolStats,
}

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

/// Bytes in use, at peak, and kept for reuse.
pub fn stats() -> PoolStats {
    POOL.lock().unwrap().stats
}

/// Size classes a quarter of an octave apart: at most a quarter of a buffer is slack.
fn class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(1);
    len.div_ceil(step) * step
}

/// A buffer of `len` elements with arbitrary (initialised) content, given back on drop.
pub(super) struct Buffer {
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    pub(super) fn take(len: usize) -> Self {
        if len < SMALL {
            return Self { data: vec![0.0; len], len };
        }
        let class = class(len);
        let bytes = class * 4;
        let recycled = {
            let pool = &mut *POOL.lock().unwrap();
            pool.stats.live += bytes;
            pool.stats.peak = pool.stats.peak.max(pool.stats.live);
            let found = pool.free.get_mut(&class).and_then(Vec::pop);
            match found {
                Some(_) => pool.stats.free -= bytes,
                None => pool.stats.allocations += 1,
            }
            found
        };
        Self { data: recycled.unwrap_or_else(|| vec![0.0; class]), len }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        &self.data[..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len < SMALL {
            return;
        }
        let data = std::mem::take(&mut self.data);
        let bytes = data.len() * 4;
        let pool = &mut *POOL.lock().unwrap();
        pool.stats.live -= bytes;
        // More spare than was ever needed at once would only be memory other programs miss.
        if pool.stats.free + bytes <= pool.stats.peak {
            pool.stats.free += bytes;
            pool.free.entry(data.len()).or_default().push(data);
        }
    }
}
