//! Device memory: allocations far apart, what was written in them, and tensor maps.
//!
//! Words are atomic, so that blocks may run on several threads without locks: a race between blocks gives one value or
//! the other, as on a device.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use crate::error::{Error, Result};
use crate::finding::Kind;

/// The first address. Every allocation has 4 GB of addresses of its own, so that running past its end meets nobody.
const FIRST: u64 = 0x10_0000_0000;
const APART: u64 = 1 << 32;
/// Addresses end where the windows of other spaces begin.
const SLOTS: usize = ((crate::decode::PARAM - FIRST) / APART) as usize;
/// First word of an encoded tensor map.
const MAP_MAGIC: u64 = u64::from_le_bytes(*b"ptxvmMAP");

/// An address of device memory.
pub type DevicePtr = u64;

/// What is wrong with an access, and in which words.
pub(crate) type Access<T> = std::result::Result<T, (Kind, String)>;

/// One allocation.
struct Allocation {
    bytes: u64,
    freed: bool,
    words: Vec<AtomicU32>,
    /// A bit for each byte that was written since it was allocated.
    known: Vec<AtomicU32>,
    /// All bytes are known.
    full: AtomicBool,
    /// A bit for each word that `ld.global.nc` read, and that was written, in this launch.
    read_only: Vec<AtomicU32>,
    written: Vec<AtomicU32>,
    tracked: AtomicBool,
}

/// The layout of a tensor in device memory that bulk tensor copies go by (PTX ISA 5.5), innermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub elem: u32,
    /// First byte.
    pub base: DevicePtr,
    /// Elements of each dimension.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next, of all dimensions but the innermost.
    pub strides: Vec<u64>,
    /// Elements of a box.
    pub tile: Vec<u32>,
    /// Elements from one taken to the next.
    pub steps: Vec<u32>,
    /// Bytes of the swizzle pattern: 0, 32, 64 or 128.
    pub swizzle: u32,
}

impl TensorMap {
    /// The rules of `cuTensorMapEncodeTiled`.
    pub fn check(&self) -> Result<()> {
        let bad = |m: String| Err(Error::Memory(format!("tensor map: {m}")));
        let rank = self.dims.len();
        if !(1..=5).contains(&rank)
            || self.strides.len() != rank - 1
            || self.tile.len() != rank
            || self.steps.len() != rank
        {
            return bad(format!(
                "{rank} dimensions, {} strides, {} of a box, {} steps: expected 1 to 5 with as many each, one stride less",
                self.strides.len(),
                self.tile.len(),
                self.steps.len()
            ));
        }
        if !matches!(self.elem, 1 | 2 | 4 | 8) {
            return bad(format!("elements of {} bytes, expected 1, 2, 4 or 8", self.elem));
        }
        if !self.base.is_multiple_of(16) {
            return bad(format!("base {:#x}, expected a multiple of 16", self.base));
        }
        if let Some(d) = self.dims.iter().find(|&&d| d == 0 || d > 1 << 32) {
            return bad(format!("a dimension of {d}, expected 1 to 2^32"));
        }
        if let Some(s) = self.strides.iter().find(|&&s| s % 16 != 0 || s >= 1 << 40) {
            return bad(format!("a stride of {s} bytes, expected a multiple of 16 below 2^40"));
        }
        if let Some(b) = self.tile.iter().find(|&&b| b == 0 || b > 256) {
            return bad(format!("{b} elements in a box, expected 1 to 256"));
        }
        if let Some(s) = self.steps.iter().find(|&&s| s == 0 || s > 8) {
            return bad(format!("a step of {s}, expected 1 to 8"));
        }
        let inner = self.tile[0] * self.elem;
        if !matches!(self.swizzle, 0 | 32 | 64 | 128)
            || !inner.is_multiple_of(16)
            || self.swizzle != 0 && inner > self.swizzle
        {
            return bad(format!(
                "rows of {inner} bytes in a box with a swizzle of {}, expected a multiple of 16 that fits",
                self.swizzle
            ));
        }
        Ok(())
    }

    /// Elements along a dimension of the box that are loaded.
    pub(crate) fn loaded(&self, d: usize) -> u32 {
        self.tile[d].div_ceil(self.steps[d])
    }

    /// Bytes of a box in shared memory.
    pub(crate) fn box_bytes(&self) -> u32 {
        (0..self.tile.len()).fold(self.elem, |n, d| n.saturating_mul(self.loaded(d)))
    }
}

/// All device memory.
#[derive(Default)]
pub struct Memory {
    slots: Vec<Allocation>,
    maps: Vec<TensorMap>,
    /// Variables of modules, by module and name.
    pub(crate) variables: HashMap<(u64, String), DevicePtr>,
    /// Atomics of 64 bits are two words, one after the other.
    wide: Mutex<()>,
}

fn zeros(n: usize) -> Vec<AtomicU32> {
    std::iter::repeat_with(|| AtomicU32::new(0)).take(n).collect()
}

impl Memory {
    /// No memory in use.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Memory that nobody wrote yet.
    pub fn alloc(&mut self, bytes: u64) -> Result<DevicePtr> {
        if bytes > APART - 4096 || self.slots.len() >= SLOTS {
            return Err(Error::Memory(format!(
                "{bytes} bytes in allocation {}: at most 4 GB each and {SLOTS} of them",
                self.slots.len() + 1
            )));
        }
        let words = bytes.div_ceil(4) as usize;
        let bits = words.div_ceil(32);
        self.slots.push(Allocation {
            bytes,
            freed: false,
            words: zeros(words),
            known: zeros(words.div_ceil(8)),
            full: AtomicBool::new(bytes == 0),
            read_only: zeros(bits),
            written: zeros(bits),
            tracked: AtomicBool::new(false),
        });
        Ok(FIRST + (self.slots.len() as u64 - 1) * APART)
    }

    /// Memory with these bytes.
    pub fn alloc_from(&mut self, data: &[u8]) -> Result<DevicePtr> {
        let p = self.alloc(data.len() as u64)?;
        self.write(p, data)?;
        Ok(p)
    }

    /// Memory of zeros.
    pub fn alloc_zeroed(&mut self, bytes: u64) -> Result<DevicePtr> {
        let p = self.alloc(bytes)?;
        self.slot(p)?.full.store(true, Relaxed);
        Ok(p)
    }

    /// Gives an allocation back. Its addresses are never used again.
    pub fn free(&mut self, p: DevicePtr) -> Result<()> {
        let n = self.index(p).filter(|_| (p - FIRST).is_multiple_of(APART));
        match n.map(|n| &mut self.slots[n]) {
            Some(a) if !a.freed => {
                a.freed = true;
                a.words = Vec::new();
                a.known = Vec::new();
                a.read_only = Vec::new();
                a.written = Vec::new();
                Ok(())
            }
            _ => Err(Error::Memory(format!("free of {p:#x}, which is no allocation in use"))),
        }
    }

    /// Copies to the device.
    pub fn write(&self, p: DevicePtr, data: &[u8]) -> Result<()> {
        let (a, at) = self.span(p, data.len() as u64)?;
        if at % 4 == 0 {
            let (head, tail) = data.as_chunks::<4>();
            for (w, v) in a.words[at / 4..].iter().zip(head) {
                w.store(u32::from_le_bytes(*v), Relaxed);
            }
            a.put_bytes(at + head.len() * 4, tail);
        } else {
            a.put_bytes(at, data);
        }
        if data.len() as u64 == a.bytes {
            a.full.store(true, Relaxed)
        } else {
            a.learn(at, data.len())
        }
        Ok(())
    }

    /// Copies from the device, written or not.
    pub fn read(&self, p: DevicePtr, out: &mut [u8]) -> Result<()> {
        let (a, at) = self.span(p, out.len() as u64)?;
        for (n, b) in out.iter_mut().enumerate() {
            *b = a.byte(at + n);
        }
        Ok(())
    }

    /// The bytes from an address.
    pub fn bytes(&self, p: DevicePtr, len: u64) -> Result<Vec<u8>> {
        self.span(p, len)?;
        let mut v = vec![0; len as usize];
        self.read(p, &mut v)?;
        Ok(v)
    }

    /// Forgets that bytes were written: reading them is a finding again.
    pub fn forget(&self, p: DevicePtr, len: u64) -> Result<()> {
        let (a, at) = self.span(p, len)?;
        if a.full.swap(false, Relaxed) {
            a.known.iter().for_each(|k| k.store(u32::MAX, Relaxed));
        }
        for n in at..at + len as usize {
            a.known[n / 32].fetch_and(!(1 << (n % 32)), Relaxed);
        }
        Ok(())
    }

    /// Checks a map and encodes it as the 128 bytes that a kernel takes.
    pub fn tensor_map(&mut self, map: TensorMap) -> Result<[u64; 16]> {
        map.check()?;
        let n = self.maps.iter().position(|m| *m == map).unwrap_or_else(|| {
            self.maps.push(map);
            self.maps.len() - 1
        });
        let mut words = [0; 16];
        words[0] = MAP_MAGIC;
        words[1] = n as u64;
        Ok(words)
    }

    pub(crate) fn map(&self, words: [u64; 2]) -> Option<&TensorMap> {
        if words[0] != MAP_MAGIC { None } else { self.maps.get(usize::try_from(words[1]).ok()?) }
    }

    fn index(&self, p: u64) -> Option<usize> {
        let n = (p.checked_sub(FIRST)? / APART) as usize;
        (n < self.slots.len()).then_some(n)
    }

    fn slot(&self, p: u64) -> Result<&Allocation> {
        let n = self.index(p).ok_or_else(|| Error::Memory(format!("{p:#x} is no device address")))?;
        if self.slots[n].freed {
            return Err(Error::Memory(format!("{p:#x} was freed")));
        }
        Ok(&self.slots[n])
    }

    fn span(&self, p: u64, len: u64) -> Result<(&Allocation, usize)> {
        let a = self.slot(p)?;
        let at = (p - FIRST) % APART;
        if at.checked_add(len).is_none_or(|end| end > a.bytes) {
            return Err(Error::Memory(format!(
                "{len} bytes from {p:#x}, of an allocation with {} left",
                a.bytes.saturating_sub(at)
            )));
        }
        Ok((a, at as usize))
    }

    /// The allocation and offset of an access of a kernel.
    #[inline(always)]
    fn locate(&self, p: u64, len: usize) -> Access<(&Allocation, usize)> {
        let Some(n) = self.index(p) else {
            return Err((Kind::OutOfBounds, "a global address that belongs to no allocation".into()));
        };
        let (a, at) = (&self.slots[n], (p - FIRST) % APART);
        if at + len as u64 > a.bytes || a.freed {
            return Err(if a.freed {
                (Kind::UseAfterFree, format!("memory of {} bytes that was freed", a.bytes))
            } else {
                (Kind::OutOfBounds, format!("byte {at} and {len} more of an allocation of {} bytes", a.bytes))
            });
        }
        Ok((a, at as usize))
    }

    /// Reads up to 16 bytes as words; `at` is a multiple of the smaller of `len` and 4.
    #[inline(always)]
    pub(crate) fn load(&self, p: u64, len: usize, nc: bool) -> Access<[u32; 4]> {
        let (a, at) = self.locate(p, len)?;
        if !a.full.load(Relaxed) && !a.knows(at, len) {
            return Err((Kind::Uninitialised, "global memory that nobody wrote".into()));
        }
        let mut out = [0; 4];
        if len >= 4 {
            for (n, o) in out.iter_mut().enumerate().take(len / 4) {
                *o = a.words[at / 4 + n].load(Relaxed);
            }
        } else {
            let w = a.words[at / 4].load(Relaxed) >> (8 * (at % 4));
            out[0] = if len == 1 { w & 0xFF } else { w & 0xFFFF };
        }
        if nc {
            a.track(&a.read_only, &a.written, at, len)?;
        }
        Ok(out)
    }

    /// Writes up to 16 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, p: u64, len: usize, v: [u32; 4], track: bool) -> Access<()> {
        let (a, at) = self.locate(p, len)?;
        if len >= 4 {
            for (n, v) in v.iter().enumerate().take(len / 4) {
                a.words[at / 4 + n].store(*v, Relaxed);
            }
        } else {
            let mask = if len == 1 { 0xFF } else { 0xFFFFu32 };
            a.merge(at / 4, mask << (8 * (at % 4)), (v[0] & mask) << (8 * (at % 4)));
        }
        if !a.full.load(Relaxed) {
            a.learn(at, len);
        }
        if track { a.track(&a.written, &a.read_only, at, len) } else { Ok(()) }
    }

    /// Replaces 4 or 8 bytes by a function of them, at once; the old ones.
    pub(crate) fn update(&self, p: u64, len: usize, track: bool, f: impl Fn(u64) -> u64) -> Access<u64> {
        let (a, at) = self.locate(p, len)?;
        if !a.full.load(Relaxed) && !a.knows(at, len) {
            return Err((Kind::Uninitialised, "an atomic on global memory that nobody wrote".into()));
        }
        if track {
            a.track(&a.written, &a.read_only, at, len)?;
        }
        if len == 4 {
            let old = a.words[at / 4].fetch_update(Relaxed, Relaxed, |v| Some(f(v.into()) as u32));
            return Ok(old.unwrap_or_else(|v| v).into());
        }
        let _one = self.wide.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (lo, hi) = (&a.words[at / 4], &a.words[at / 4 + 1]);
        let old = u64::from(lo.load(Relaxed)) | u64::from(hi.load(Relaxed)) << 32;
        let new = f(old);
        lo.store(new as u32, Relaxed);
        hi.store((new >> 32) as u32, Relaxed);
        Ok(old)
    }

    /// Forgets what earlier launches read and wrote.
    pub(crate) fn begin_launch(&self) {
        for a in self.slots.iter().filter(|a| a.tracked.swap(false, Relaxed)) {
            a.read_only.iter().chain(&a.written).for_each(|w| w.store(0, Relaxed));
        }
    }
}

impl Allocation {
    fn byte(&self, at: usize) -> u8 {
        (self.words[at / 4].load(Relaxed) >> (8 * (at % 4))) as u8
    }

    fn merge(&self, word: usize, mask: u32, bits: u32) {
        self.words[word].fetch_and(!mask, Relaxed);
        self.words[word].fetch_or(bits, Relaxed);
    }

    fn put_bytes(&self, at: usize, data: &[u8]) {
        for (n, &b) in data.iter().enumerate() {
            let shift = 8 * ((at + n) % 4);
            self.merge((at + n) / 4, 0xFF << shift, u32::from(b) << shift);
        }
    }

    #[inline(always)]
    fn knows(&self, at: usize, len: usize) -> bool {
        // an access of up to 16 aligned bytes lies in one word of bits
        let ones = (u32::MAX >> (32 - len)) << (at % 32);
        self.known[at / 32].load(Relaxed) & ones == ones
    }

    fn learn(&self, at: usize, len: usize) {
        let mut n = at;
        while n < at + len {
            let here = (32 - n % 32).min(at + len - n);
            let ones = (u32::MAX >> (32 - here)) << (n % 32);
            if self.known[n / 32].load(Relaxed) & ones != ones {
                self.known[n / 32].fetch_or(ones, Relaxed);
            }
            n += here;
        }
    }

    /// Marks words in one set; whoever comes second sees the other's mark.
    fn track(&self, mine: &[AtomicU32], theirs: &[AtomicU32], at: usize, len: usize) -> Access<()> {
        if !self.tracked.load(Relaxed) {
            self.tracked.store(true, Relaxed);
        }
        for w in at / 4..(at + len).div_ceil(4) {
            let bit = 1u32 << (w % 32);
            if mine[w / 32].load(Relaxed) & bit == 0 {
                mine[w / 32].fetch_or(bit, SeqCst);
            }
            if theirs[w / 32].load(SeqCst) & bit != 0 {
                return Err((Kind::ReadOnly, "memory that is written and read by ld.global.nc in one launch".into()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_edges_are_kept() {
        let mut m = Memory::new();
        let p = m.alloc_from(&[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(m.bytes(p + 1, 4).unwrap(), [2, 3, 4, 5]);
        assert!(m.bytes(p + 1, 5).is_err());
        assert!(m.write(p + 5, &[1]).is_err());
        m.free(p).unwrap();
        assert!(m.free(p).is_err());
        assert!(m.read(p, &mut [0]).is_err());
        assert_eq!(m.load(p, 4, false).unwrap_err().0, Kind::UseAfterFree);
    }

    #[test]
    fn only_written_bytes_are_known() {
        let mut m = Memory::new();
        let p = m.alloc(64).unwrap();
        m.write(p + 2, &[7, 7]).unwrap();
        assert_eq!(m.load(p, 4, false).unwrap_err().0, Kind::Uninitialised);
        assert_eq!(m.load(p + 2, 2, false).unwrap()[0], 0x0707);
        m.store(p + 32, 16, [1, 2, 3, 4], false).unwrap();
        assert_eq!(m.load(p + 32, 16, false).unwrap(), [1, 2, 3, 4]);
        m.forget(p + 40, 1).unwrap();
        assert_eq!(m.load(p + 40, 4, false).unwrap_err().0, Kind::Uninitialised);
    }

    #[test]
    fn what_is_read_as_constant_must_not_be_written() {
        let mut m = Memory::new();
        let p = m.alloc_zeroed(64).unwrap();
        m.load(p, 4, true).unwrap();
        assert_eq!(m.store(p, 4, [1; 4], true).unwrap_err().0, Kind::ReadOnly);
        m.begin_launch();
        m.store(p, 4, [1; 4], true).unwrap();
        assert_eq!(m.load(p, 4, true).unwrap_err().0, Kind::ReadOnly);
    }
}
