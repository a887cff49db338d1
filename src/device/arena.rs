//! Recycled host buffers, so that steady state asks the system for no memory and touches no fresh page.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

/// Below this many bytes the allocator's own caches are as good.
const SMALL: usize = 1 << 14;

/// What the arena has handed out and holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
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
struct Arena {
    free: HashMap<usize, Vec<Vec<u32>>>,
    stats: ArenaStats,
}

static ARENA: LazyLock<Mutex<Arena>> = LazyLock::new(Mutex::default);

static POISON: AtomicBool = AtomicBool::new(cfg!(test));

/// From now on fresh buffers are filled with NaN, so that a test sees what was read before it was written.
pub fn poison_scratch() {
    POISON.store(true, Ordering::Relaxed);
}

/// Bytes in use, at peak, and kept for reuse.
pub fn stats() -> ArenaStats {
    ARENA.lock().expect("nothing panics while holding it").stats
}

/// Bytes that a buffer for `bytes` takes out of the arena: sizes are a quarter of an octave apart, so at most a quarter of
/// a buffer is slack. Small ones take none.
pub(super) fn taken(bytes: usize) -> usize {
    if bytes < SMALL {
        return 0;
    }
    let step = bytes.next_power_of_two() / 8;
    bytes.div_ceil(step) * step
}

/// A buffer of arbitrary (initialised) content, given back on drop.
pub(super) struct Buffer {
    words: Vec<u32>,
    bytes: usize,
}

impl Buffer {
    pub(super) fn take(bytes: usize) -> Self {
        let size = taken(bytes);
        let mut words = if size == 0 { vec![0; bytes.div_ceil(4)] } else { recycled(size) };
        if POISON.load(Ordering::Relaxed) {
            words.fill(f32::NAN.to_bits());
        }
        Self { words, bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}

/// A buffer of `size` bytes from the arena, or a new one.
fn recycled(size: usize) -> Vec<u32> {
    let found = {
        let arena = &mut *ARENA.lock().expect("nothing panics while holding it");
        arena.stats.live += size;
        arena.stats.peak = arena.stats.peak.max(arena.stats.live);
        let found = arena.free.get_mut(&size).and_then(Vec::pop);
        match found {
            Some(_) => arena.stats.free -= size,
            None => arena.stats.allocations += 1,
        }
        found
    };
    found.unwrap_or_else(|| vec![0; size / 4])
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = taken(self.bytes);
        if size == 0 {
            return;
        }
        let words = std::mem::take(&mut self.words);
        let arena = &mut *ARENA.lock().expect("nothing panics while holding it");
        arena.stats.live -= size;
        // More spare than was ever needed at once would only be memory other programs miss.
        if arena.stats.free + size <= arena.stats.peak {
            arena.stats.free += size;
            arena.free.entry(size).or_default().push(words);
        }
    }
}
