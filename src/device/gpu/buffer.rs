//! Memory of a device, and numbers that go to and come from it.

use std::marker::PhantomData;
use std::sync::Arc;

use super::driver::{Arg, DevicePtr, Op};
use super::pool::{self, Place};
use super::{Gpu, lock};
use crate::device::ledger::Reserved;

/// Numbers on the device for a launch or a few.
pub struct Table {
    at: DevicePtr,
    _buffer: Option<Buffer>,
}

impl Gpu {
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
pub(in crate::device) struct Buffer {
    gpu: Arc<Gpu>,
    /// The number of its lane, and where it is, unless something has failed.
    place: Option<(usize, Place)>,
    _counted: Option<Reserved>,
}

impl Buffer {
    /// Memory of arbitrary content. After a failure there is none, and nothing is done with it.
    pub(in crate::device) fn take(gpu: &Arc<Gpu>, bytes: usize) -> Self {
        let place = gpu.take(bytes).map(|place| (gpu.here(), place));
        let counted = gpu.ledger().map(|ledger| Reserved::exactly(ledger, pool::taken(bytes) as u64));
        Self { gpu: gpu.clone(), place, _counted: counted }
    }

    pub(in crate::device) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(in crate::device) fn ptr(&self) -> DevicePtr {
        self.place.map_or(0, |(_, place)| place.ptr)
    }

    /// Copies to the device from byte `first` on.
    pub(in crate::device) fn write(&self, first: usize, data: &[u8]) {
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
    pub(in crate::device) fn read(&self, first: usize, out: &mut [u8]) {
        let (gpu, from) = (&self.gpu, self.ptr() + first as u64);
        if out.is_empty() {
            return;
        }
        gpu.ledger().into_iter().for_each(|ledger| ledger.wait());
        let done = gpu.attempt(|lane| {
            lane.flush(&*gpu.driver)?;
            gpu.driver.read(from, out)
        });
        if done.is_none() {
            out.fill(0xFF);
        }
    }

    /// Sets bytes.
    pub(in crate::device) fn fill(&self, first: usize, bytes: usize, byte: u8) {
        let (gpu, to) = (&self.gpu, self.ptr() + first as u64);
        if bytes > 0 {
            gpu.note("fill", "fill", Some(bytes));
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
        gpu.note("copy", "copy", Some(bytes));
        gpu.attempt(|lane| lane.submit(&*gpu.driver, Op::Copy { to, from, bytes }));
    }
}
