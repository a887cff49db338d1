//! The way between pages of this process and the device: two slots of pinned memory that take turns, so that one is filled
//! (or emptied) while the other is on the bus.

use std::ptr::null_mut;

use anyhow::Result;
use cudarc::driver::sys;

use super::{cu, event};
use crate::device::gpu::driver::DevicePtr;

/// Bytes of a slot: long enough on the bus that what comes between two copies does not count.
const SLOT: usize = 8 << 20;
/// What one thread copies: mapped pages come in faster when several ask.
const PIECE: usize = 2 << 20;
/// Copies begin at multiples of this.
const ALIGN: usize = 256;

/// The two slots. All copies are asked for on one stream.
pub struct Ring {
    /// Null until something is copied.
    base: *mut u8,
    /// Comes after the last use of a slot.
    done: [sys::CUevent; 2],
    at: usize,
    used: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self { base: null_mut(), done: [null_mut(); 2], at: 0, used: 0 }
    }
}

impl Ring {
    /// Copies to the device; `data` may go when this returns.
    pub fn write(&mut self, stream: sys::CUstream, to: DevicePtr, data: &[u8]) -> Result<()> {
        for (i, page) in data.chunks(SLOT).enumerate() {
            let pinned = self.place(stream, page.len())?;
            fill(pinned, page);
            cu!(cuMemcpyHtoDAsync_v2(to + (i * SLOT) as u64, pinned.as_ptr().cast(), page.len(), stream))?;
        }
        Ok(())
    }

    /// Copies from the device, after all that the stream was asked for.
    pub fn read(&mut self, stream: sys::CUstream, from: DevicePtr, out: &mut [u8]) -> Result<()> {
        // The page before, which is emptied while the next is on the bus.
        let mut before: Option<(&mut [u8], *const u8, usize)> = None;
        for (i, page) in out.chunks_mut(SLOT).enumerate() {
            let pinned = self.place(stream, page.len())?.as_mut_ptr();
            cu!(cuMemcpyDtoHAsync_v2(pinned.cast(), from + (i * SLOT) as u64, page.len(), stream))?;
            cu!(cuEventRecord(self.done[self.at], stream))?;
            if let Some(before) = before.replace((page, pinned, self.at)) {
                self.empty(before)?;
            }
        }
        before.map_or(Ok(()), |last| self.empty(last))
    }

    fn empty(&self, (page, pinned, slot): (&mut [u8], *const u8, usize)) -> Result<()> {
        cu!(cuEventSynchronize(self.done[slot]))?;
        // SAFETY: the slot is ours, holds as many bytes, and the device has written them.
        unsafe { pinned.copy_to_nonoverlapping(page.as_mut_ptr(), page.len()) };
        Ok(())
    }

    /// Pinned memory that nothing uses any more, for at most a slot's bytes.
    fn place(&mut self, stream: sys::CUstream, bytes: usize) -> Result<&mut [u8]> {
        if self.base.is_null() {
            let mut base = null_mut();
            cu!(cuMemHostAlloc(&mut base, 2 * SLOT, 0))?;
            // Recorded at once, so that waiting for the first use waits for nothing.
            for done in &mut self.done {
                *done = event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
                cu!(cuEventRecord(*done, stream))?;
            }
            self.base = base.cast();
        }
        if self.used + bytes > SLOT {
            cu!(cuEventRecord(self.done[self.at], stream))?;
            (self.at, self.used) = (1 - self.at, 0);
            cu!(cuEventSynchronize(self.done[self.at]))?;
        }
        let start = self.at * SLOT + self.used;
        self.used = (self.used + bytes).next_multiple_of(ALIGN);
        // SAFETY: inside of the ring, which lives until `release`; the parts before `used` are given to no one again before
        // the event that comes after their copies. The memory is the driver's, so all of it has some value.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.base.add(start), bytes) })
    }

    /// Gives the memory back; nothing is being copied any more.
    pub fn release(&mut self) {
        if !self.base.is_null() {
            drop(cu!(cuMemFreeHost(self.base.cast())));
            self.done.iter().for_each(|done| drop(cu!(cuEventDestroy_v2(*done))));
            *self = Self::default();
        }
    }
}

/// Copies a page that may still have to come from a disk.
fn fill(pinned: &mut [u8], page: &[u8]) {
    if page.len() < 2 * PIECE {
        return pinned.copy_from_slice(page);
    }
    // Not on the workers, one of which may be here with a lock that the rest of its work waits for.
    std::thread::scope(|scope| {
        for (to, from) in pinned.chunks_mut(PIECE).zip(page.chunks(PIECE)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}
