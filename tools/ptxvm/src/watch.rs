//! What orders the blocks of a launch, and so which accesses to global memory are races.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use crate::finding::Kind;
use crate::memory::Access;

/// What orders the blocks of one launch: a fence, then an atomic by one block; an atomic by another, then its reads. Which
/// word the atomics are on is not asked.
#[derive(Default)]
pub(crate) struct Order {
    clock: AtomicU64,
    /// For each block that fenced: when what it wrote before each of its fences was released by an atomic.
    released: Mutex<HashMap<u32, Vec<u64>>>,
}

/// A block as the watch over global memory knows it.
pub(crate) struct Watch<'a> {
    /// Writes are kept for `ld.global.nc`.
    pub nc: bool,
    /// Races are looked for.
    pub order: Option<&'a Order>,
    block: u32,
    fences: u32,
    acquired: u64,
}

/// Blocks and fences that a tag can name.
const BLOCKS: u64 = (1 << 24) - 2;
const FENCES: u32 = 255;

impl<'a> Watch<'a> {
    pub fn new(nc: bool, order: Option<&'a Order>, block: u64) -> Watch<'a> {
        Watch { nc, order: order.filter(|_| block < BLOCKS), block: block as u32 + 1, fences: 0, acquired: 0 }
    }

    pub fn tag(&self) -> u32 {
        self.block << 8 | self.fences.min(FENCES)
    }

    /// `membar` and its like.
    pub fn fence(&mut self) {
        self.fences += u32::from(self.order.is_some());
    }

    /// What was fenced is there for whoever comes later: before an atomic.
    pub fn release(&mut self) {
        let Some(order) = self.order.filter(|_| self.fences > 0) else { return };
        let mut all = order.released.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = all.entry(self.block).or_default();
        if mine.len() < self.fences as usize {
            mine.resize(self.fences as usize, order.clock.fetch_add(1, SeqCst));
        }
    }

    /// What others released is known: after an atomic.
    pub fn acquire(&mut self) {
        if let Some(order) = self.order {
            self.acquired = order.clock.fetch_add(1, SeqCst);
        }
    }

    /// Whether a write by another block comes before what this one does now.
    #[cold]
    fn ordered(&self, tag: u32) -> bool {
        let (block, fence) = (tag >> 8, tag & 0xFF);
        let Some(order) = self.order.filter(|_| fence < FENCES) else { return true };
        let all = order.released.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&block).and_then(|t| t.get(fence as usize)).is_some_and(|&t| t < self.acquired)
    }

    #[inline(always)]
    pub fn meets(&self, tag: u32, what: &str) -> Access<()> {
        if tag >> 8 == self.block || tag == 0 || self.ordered(tag) {
            return Ok(());
        }
        Err((Kind::Race, format!("{what} of global memory, not ordered after the write by block {}", (tag >> 8) - 1)))
    }
}
