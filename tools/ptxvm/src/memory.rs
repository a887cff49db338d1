//! Device memory: allocations far apart, what was written in them, and tensor maps.
//!
//! Words are atomic, so that blocks may run on several threads without locks: a race between blocks gives one value or
//! the other, as on a device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::finding::Kind;
use crate::regs::LANES;
use crate::tensor_map::TensorMap;
use crate::watch::Watch;

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
    /// What this launch did, by pages of words, where it did something that is watched.
    pages: Vec<OnceLock<Box<Page>>>,
}

/// Words of a page.
const PAGE: usize = 1024;

/// What a launch did to some words.
struct Page {
    /// It did something, so that it must be forgotten.
    touched: AtomicBool,
    tagged: AtomicBool,
    /// A bit for each word that `ld.global.nc` read, and that was written.
    read_only: [AtomicU32; PAGE / 32],
    written: [AtomicU32; PAGE / 32],
    /// Who wrote each word last.
    tags: [AtomicU32; PAGE],
}

impl Default for Page {
    fn default() -> Page {
        Page {
            touched: AtomicBool::new(false),
            tagged: AtomicBool::new(false),
            read_only: [const { AtomicU32::new(0) }; PAGE / 32],
            written: [const { AtomicU32::new(0) }; PAGE / 32],
            tags: [const { AtomicU32::new(0) }; PAGE],
        }
    }
}

/// All device memory.
#[derive(Default)]
pub struct Memory {
    slots: Vec<Allocation>,
    maps: Vec<TensorMap>,
    /// Variables of modules, by module, in order.
    pub(crate) variables: HashMap<u64, Vec<DevicePtr>>,
    /// Atomics of 64 bits are two words, one after the other.
    wide: Mutex<()>,
    /// Pages that the last launch touched: allocation and page.
    touched: Mutex<Vec<(usize, usize)>>,
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
        self.slots.push(Allocation {
            bytes,
            freed: false,
            words: zeros(words),
            known: zeros(words.div_ceil(8)),
            full: AtomicBool::new(bytes == 0),
            pages: std::iter::repeat_with(OnceLock::new).take(words.div_ceil(PAGE)).collect(),
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
                a.pages = Vec::new();
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

    /// The number of the allocation of an access of a kernel, and the offset there.
    #[inline(always)]
    fn locate(&self, p: u64, len: usize) -> Access<(usize, usize)> {
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
        Ok((n, at as usize))
    }

    /// What must hold before bytes are read.
    #[inline(always)]
    fn may_read(&self, slot: usize, at: usize, len: usize, nc: bool, watch: &Watch) -> Access<()> {
        let a = &self.slots[slot];
        if !a.full.load(Relaxed) && !a.knows(at, len) {
            return Err((Kind::Uninitialised, "global memory that nobody wrote".into()));
        }
        if nc {
            self.mark(slot, at, len, true)?;
        }
        if watch.order.is_some() {
            a.tags(at, len, |t| watch.meets(t.load(Relaxed), "a read"))?;
        }
        Ok(())
    }

    /// What must hold before bytes are written.
    #[inline(always)]
    fn may_write(&self, slot: usize, at: usize, len: usize, watch: &Watch) -> Access<()> {
        if watch.nc {
            self.mark(slot, at, len, false)?;
        }
        if watch.order.is_some() {
            for p in at / 4 / PAGE..=(at + len - 1) / 4 / PAGE {
                self.page(slot, p).tagged.store(true, Relaxed);
            }
            let mine = watch.tag();
            self.slots[slot].tags(at, len, |t| {
                watch.meets(t.load(Relaxed), "a write")?;
                t.store(mine, Relaxed);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads up to 16 bytes as words; `at` is a multiple of the smaller of `len` and 4.
    #[inline(always)]
    pub(crate) fn load(&self, p: u64, len: usize, nc: bool, watch: &Watch) -> Access<[u32; 4]> {
        let (n, at) = self.locate(p, len)?;
        self.may_read(n, at, len, nc, watch)?;
        let a = &self.slots[n];
        let mut out = [0; 4];
        if len >= 4 {
            for (n, o) in out.iter_mut().enumerate().take(len / 4) {
                *o = a.words[at / 4 + n].load(Relaxed);
            }
        } else {
            let w = a.words[at / 4].load(Relaxed) >> (8 * (at % 4));
            out[0] = if len == 1 { w & 0xFF } else { w & 0xFFFF };
        }
        Ok(out)
    }

    /// Writes up to 16 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, p: u64, len: usize, v: [u32; 4], watch: &Watch) -> Access<()> {
        let (n, at) = self.locate(p, len)?;
        self.may_write(n, at, len, watch)?;
        let a = &self.slots[n];
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
        Ok(())
    }

    /// Reads whole words into bytes, all or none.
    pub(crate) fn load_span(&self, p: u64, out: &mut [u8], watch: &Watch) -> Access<()> {
        let (n, at) = self.locate(p, out.len())?;
        self.may_read(n, at, out.len(), false, watch)?;
        for (o, w) in out.as_chunks_mut::<4>().0.iter_mut().zip(&self.slots[n].words[at / 4..]) {
            *o = w.load(Relaxed).to_le_bytes();
        }
        Ok(())
    }

    /// Writes bytes as whole words; nothing if anything is wrong.
    pub(crate) fn store_span(&self, p: u64, data: &[u8], watch: &Watch) -> Access<()> {
        let (n, at) = self.locate(p, data.len())?;
        self.may_write(n, at, data.len(), watch)?;
        let a = &self.slots[n];
        for (v, w) in data.as_chunks::<4>().0.iter().zip(&a.words[at / 4..]) {
            w.store(u32::from_le_bytes(*v), Relaxed);
        }
        if !a.full.load(Relaxed) {
            a.learn(at, data.len());
        }
        Ok(())
    }

    /// The allocation that all of these runs of bytes lie in, and the address of its first byte.
    #[inline(always)]
    fn whole(&self, runs: &[(u64, u64)]) -> Option<(usize, u64)> {
        let n = self.index(runs[0].0)?;
        let base = FIRST + n as u64 * APART;
        let a = &self.slots[n];
        (!a.freed && runs.iter().all(|r| r.0 >= base && r.1 <= base + a.bytes)).then_some((n, base))
    }

    /// Reads `len` aligned bytes from each of 32 addresses that lie in the runs; false if something is wrong with one.
    #[inline(always)]
    pub(crate) fn gather(
        &self,
        at: &[u64; LANES],
        runs: &[(u64, u64)],
        len: usize,
        nc: bool,
        watch: &Watch,
        out: &mut [[u32; LANES]; 4],
    ) -> bool {
        let Some((n, base)) = self.whole(runs) else { return false };
        if runs.iter().any(|r| self.may_read(n, (r.0 - base) as usize, (r.1 - r.0) as usize, nc, watch).is_err()) {
            return false;
        }
        let words = &self.slots[n].words[..];
        fn copy<const N: usize>(words: &[AtomicU32], at: &[u64; LANES], base: u64, out: &mut [[u32; LANES]; 4]) {
            for (l, &a) in at.iter().enumerate() {
                let o = ((a - base) / 4) as usize;
                let w = &words[o..o + N];
                for k in 0..N {
                    out[k][l] = w[k].load(Relaxed);
                }
            }
        }
        match len {
            16 => copy::<4>(words, at, base, out),
            8 => copy::<2>(words, at, base, out),
            4 => copy::<1>(words, at, base, out),
            _ => {
                for (l, &a) in at.iter().enumerate() {
                    let o = (a - base) as usize;
                    out[0][l] = words[o / 4].load(Relaxed) >> (8 * (o % 4));
                }
            }
        }
        true
    }

    /// Writes `len` aligned bytes to the address of each lane of a mask; false, and nothing done, if something is wrong.
    #[inline(always)]
    pub(crate) fn scatter(
        &self,
        (at, mask): (&[u64; LANES], u32),
        runs: &[(u64, u64)],
        len: usize,
        watch: &Watch,
        v: &[[u32; LANES]; 4],
    ) -> bool {
        let Some((n, base)) = self.whole(runs) else { return false };
        if runs.iter().any(|r| self.may_write(n, (r.0 - base) as usize, (r.1 - r.0) as usize, watch).is_err()) {
            return false;
        }
        let a = &self.slots[n];
        let words = &a.words[..];
        fn copy<const N: usize>(
            words: &[AtomicU32],
            (at, mask): (&[u64; LANES], u32),
            base: u64,
            v: &[[u32; LANES]; 4],
        ) {
            for (l, &a) in at.iter().enumerate() {
                if mask >> l & 1 == 1 {
                    let o = ((a - base) / 4) as usize;
                    let w = &words[o..o + N];
                    for k in 0..N {
                        w[k].store(v[k][l], Relaxed);
                    }
                }
            }
        }
        match len {
            16 => copy::<4>(words, (at, mask), base, v),
            8 => copy::<2>(words, (at, mask), base, v),
            4 => copy::<1>(words, (at, mask), base, v),
            _ => {
                let ones = if len == 1 { 0xFF } else { 0xFFFFu32 };
                let mut l = 0;
                while l < LANES {
                    if mask >> l & 1 == 1 {
                        let (o, per) = ((at[l] - base) as usize, 4 / len);
                        let whole = o % 4 == 0
                            && l + per <= LANES
                            && (1..per).all(|k| mask >> (l + k) & 1 == 1 && at[l + k] == at[l] + (k * len) as u64);
                        if whole {
                            let w = (0..per).fold(0, |w, k| w | (v[0][l + k] & ones) << (8 * len * k));
                            words[o / 4].store(w, Relaxed);
                            l += per;
                            continue;
                        }
                        a.merge(o / 4, ones << (8 * (o % 4)), (v[0][l] & ones) << (8 * (o % 4)));
                    }
                    l += 1;
                }
            }
        }
        if !a.full.load(Relaxed) {
            runs.iter().for_each(|r| a.learn((r.0 - base) as usize, (r.1 - r.0) as usize));
        }
        true
    }

    /// Replaces 2, 4 or 8 bytes by a function of them, at once; the old ones.
    pub(crate) fn update(&self, p: u64, len: usize, watch: &Watch, f: impl Fn(u64) -> u64) -> Access<u64> {
        let (n, at) = self.locate(p, len)?;
        let a = &self.slots[n];
        if !a.full.load(Relaxed) && !a.knows(at, len) {
            return Err((Kind::Uninitialised, "an atomic on global memory that nobody wrote".into()));
        }
        if watch.nc {
            self.mark(n, at, len, false)?;
        }
        if len <= 4 {
            let (shift, ones) = (8 * (at % 4), u32::MAX >> (32 - 8 * len));
            let new = |v: u32| v & !(ones << shift) | (f((v >> shift & ones).into()) as u32 & ones) << shift;
            let old = a.words[at / 4].fetch_update(Relaxed, Relaxed, |v| Some(new(v)));
            return Ok((old.unwrap_or_else(|v| v) >> shift & ones).into());
        }
        let _one = self.wide.lock().unwrap_or_else(PoisonError::into_inner);
        let (lo, hi) = (&a.words[at / 4], &a.words[at / 4 + 1]);
        let old = u64::from(lo.load(Relaxed)) | u64::from(hi.load(Relaxed)) << 32;
        let new = f(old);
        lo.store(new as u32, Relaxed);
        hi.store((new >> 32) as u32, Relaxed);
        Ok(old)
    }

    /// Forgets what the last launch read and wrote.
    pub(crate) fn begin_launch(&self) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, page) in touched.drain(..) {
            let Some(p) = self.slots[slot].pages.get(page).and_then(OnceLock::get) else { continue };
            p.read_only.iter().chain(&p.written).for_each(|w| w.store(0, Relaxed));
            if p.tagged.load(Relaxed) {
                p.tags.iter().for_each(|t| t.store(0, Relaxed));
                p.tagged.store(false, Relaxed);
            }
            p.touched.store(false, Relaxed);
        }
    }

    /// A page of an allocation, which is forgotten when the next launch begins.
    #[inline(always)]
    fn page(&self, slot: usize, page: usize) -> &Page {
        let p = self.slots[slot].pages[page].get_or_init(Box::default);
        if !p.touched.load(Relaxed) && !p.touched.swap(true, SeqCst) {
            self.touched.lock().unwrap_or_else(PoisonError::into_inner).push((slot, page));
        }
        p
    }

    /// Marks words as read by `ld.global.nc` or as written; whoever comes second sees the other's mark.
    #[inline(always)]
    fn mark(&self, slot: usize, at: usize, len: usize, read: bool) -> Access<()> {
        let (mut w, end) = (at / 4, (at + len).div_ceil(4));
        while w < end {
            let here = (32 - w % 32).min(end - w);
            let bits = u32::MAX >> (32 - here) << (w % 32);
            let page = self.page(slot, w / PAGE);
            let n = w % PAGE / 32;
            let (mine, theirs) = if read { (&page.read_only, &page.written) } else { (&page.written, &page.read_only) };
            if mine[n].load(Relaxed) & bits != bits {
                mine[n].fetch_or(bits, SeqCst);
            }
            if theirs[n].load(SeqCst) & bits != 0 {
                return Err((Kind::ReadOnly, "memory that is written and read by ld.global.nc in one launch".into()));
            }
            w += here;
        }
        Ok(())
    }
}

impl Allocation {
    fn byte(&self, at: usize) -> u8 {
        (self.words[at / 4].load(Relaxed) >> (8 * (at % 4))) as u8
    }

    fn merge(&self, word: usize, mask: u32, bits: u32) {
        let _ = self.words[word].fetch_update(Relaxed, Relaxed, |v| Some(v & !mask | bits));
    }

    fn put_bytes(&self, at: usize, data: &[u8]) {
        for (n, &b) in data.iter().enumerate() {
            let shift = 8 * ((at + n) % 4);
            self.merge((at + n) / 4, 0xFF << shift, u32::from(b) << shift);
        }
    }

    #[inline(always)]
    fn knows(&self, at: usize, len: usize) -> bool {
        let (mut n, end) = (at, at + len);
        while n < end {
            let here = (32 - n % 32).min(end - n);
            let ones = (u32::MAX >> (32 - here)) << (n % 32);
            if self.known[n / 32].load(Relaxed) & ones != ones {
                return false;
            }
            n += here;
        }
        true
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

    /// The tags of bytes, where this launch wrote anything on their pages. Words that are not covered whole have none: their
    /// other bytes may be another block's.
    #[inline(always)]
    fn tags(&self, at: usize, len: usize, f: impl Fn(&AtomicU32) -> Access<()>) -> Access<()> {
        let (mut w, end) = (at.div_ceil(4), (at + len) / 4);
        while w < end {
            let here = (PAGE - w % PAGE).min(end - w);
            if let Some(p) = self.pages[w / PAGE].get().filter(|p| p.tagged.load(Relaxed)) {
                p.tags[w % PAGE..w % PAGE + here].iter().try_for_each(&f)?;
            }
            w += here;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Watch<'static> {
        Watch::new(false, None, 0)
    }

    fn nc() -> Watch<'static> {
        Watch::new(true, None, 0)
    }

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
        assert_eq!(m.load(p, 4, false, &none()).unwrap_err().0, Kind::UseAfterFree);
    }

    #[test]
    fn only_written_bytes_are_known() {
        let mut m = Memory::new();
        let p = m.alloc(64).unwrap();
        m.write(p + 2, &[7, 7]).unwrap();
        assert_eq!(m.load(p, 4, false, &none()).unwrap_err().0, Kind::Uninitialised);
        assert_eq!(m.load(p + 2, 2, false, &none()).unwrap()[0], 0x0707);
        m.store(p + 32, 16, [1, 2, 3, 4], &none()).unwrap();
        assert_eq!(m.load(p + 32, 16, false, &none()).unwrap(), [1, 2, 3, 4]);
        m.forget(p + 40, 1).unwrap();
        assert_eq!(m.load(p + 40, 4, false, &none()).unwrap_err().0, Kind::Uninitialised);
    }

    #[test]
    fn what_is_read_as_constant_must_not_be_written() {
        let mut m = Memory::new();
        let p = m.alloc_zeroed(64).unwrap();
        m.load(p, 4, true, &nc()).unwrap();
        assert_eq!(m.store(p, 4, [1; 4], &nc()).unwrap_err().0, Kind::ReadOnly);
        m.begin_launch();
        m.store(p, 4, [1; 4], &nc()).unwrap();
        assert_eq!(m.load(p, 4, true, &nc()).unwrap_err().0, Kind::ReadOnly);
    }
}
