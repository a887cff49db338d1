//! The shared memory of one block.

use crate::finding::Kind;
use crate::memory::Access;
use crate::regs::LANES;

/// Bytes that are forgotten together when the memory is used again.
const PAGE: usize = 1024;

/// Bytes, which of them were written, and where variables lie.
#[derive(Default)]
pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    /// Four bits for each word.
    known: Vec<u8>,
    /// Pages in which something is known.
    dirty: Vec<bool>,
    /// First byte and the byte after the last of each variable; the dynamic one last.
    regions: Vec<(u32, u32)>,
}

impl Shared {
    /// Memory for these variables, in that of an earlier block.
    pub fn new(regions: &[(u32, u32)], before: Option<Shared>) -> Shared {
        let mut s = before.unwrap_or_default();
        for (n, d) in s.dirty.iter_mut().enumerate().filter(|(_, d)| **d) {
            s.known[n * PAGE / 4..(n + 1) * PAGE / 4].fill(0);
            *d = false;
        }
        let end = regions.iter().map(|r| r.1).max().unwrap_or(0).next_multiple_of(PAGE as u32) as usize;
        if s.bytes.len() < end {
            // what nobody wrote is NaN in every format
            s.bytes.resize(end, 0xFF);
            s.known.resize(end / 4, 0);
            s.dirty.resize(end / PAGE, false);
        }
        s.regions.clear();
        s.regions.extend_from_slice(regions);
        s
    }

    /// Words in it.
    pub fn words(&self) -> usize {
        self.known.len()
    }

    /// The offset of an access, which must lie in one variable and be aligned.
    #[inline(always)]
    pub fn check(&self, a: u64, len: usize, align: usize) -> Access<usize> {
        if !a.is_multiple_of(align as u64) {
            return Err((Kind::Misaligned, format!("shared memory that must be aligned to {align}")));
        }
        let inside = |r: &&(u32, u32)| a >= u64::from(r.0) && a + len as u64 <= u64::from(r.1);
        if a > u64::from(u32::MAX) || self.regions.iter().rev().find(inside).is_none() {
            return Err((Kind::OutOfBounds, format!("{len} bytes of shared memory outside of every variable")));
        }
        Ok(a as usize)
    }

    #[inline(always)]
    pub fn knows(&self, at: usize, len: usize) -> bool {
        match len {
            1 | 2 => {
                let m = ((1u8 << len) - 1) << (at % 4);
                self.known[at / 4] & m == m
            }
            _ => self.known[at / 4..(at + len).div_ceil(4)].iter().fold(15, |m, &k| m & k) == 15,
        }
    }

    #[inline(always)]
    pub fn learn(&mut self, at: usize, len: usize) {
        if len == 0 {
            return;
        }
        self.dirty[at / PAGE..=(at + len - 1) / PAGE].fill(true);
        match len {
            1 | 2 => self.known[at / 4] |= ((1 << len) - 1) << (at % 4),
            _ => self.known[at / 4..(at + len).div_ceil(4)].fill(15),
        }
    }

    #[inline(always)]
    pub fn load(&self, a: u64, len: usize) -> Access<[u32; 4]> {
        let at = self.check(a, len, len)?;
        if !self.knows(at, len) {
            return Err((Kind::Uninitialised, "shared memory that nobody wrote".into()));
        }
        let mut b = [0u8; 16];
        b[..len].copy_from_slice(&self.bytes[at..at + len]);
        Ok(words(b))
    }

    #[inline(always)]
    pub fn store(&mut self, a: u64, len: usize, v: [u32; 4]) -> Access<()> {
        let at = self.check(a, len, len)?;
        self.bytes[at..at + len].copy_from_slice(&raw(v)[..len]);
        self.learn(at, len);
        Ok(())
    }

    /// Reads `len` aligned bytes from each of 32 addresses that were checked.
    #[inline(always)]
    pub fn gather(&self, at: &[u64; LANES], len: usize, out: &mut [[u32; LANES]; 4]) {
        fn copy<const N: usize>(bytes: &[u8], at: &[u64; LANES], out: &mut [[u32; LANES]; 4]) {
            for (l, &a) in at.iter().enumerate() {
                let (w, _) = bytes[a as usize..a as usize + 4 * N].as_chunks::<4>();
                for k in 0..N {
                    out[k][l] = u32::from_le_bytes(w[k]);
                }
            }
        }
        match len {
            16 => copy::<4>(&self.bytes, at, out),
            8 => copy::<2>(&self.bytes, at, out),
            4 => copy::<1>(&self.bytes, at, out),
            2 => at.iter().zip(&mut out[0]).for_each(|(&a, o)| *o = self.half(a as usize).into()),
            _ => at.iter().zip(&mut out[0]).for_each(|(&a, o)| *o = self.bytes[a as usize].into()),
        }
    }

    /// Writes `len` aligned bytes to the address of each lane of a mask; they were checked.
    #[inline(always)]
    pub fn scatter(&mut self, (at, mask): (&[u64; LANES], u32), len: usize, v: &[[u32; LANES]; 4]) {
        fn copy<const N: usize>(bytes: &mut [u8], (at, mask): (&[u64; LANES], u32), v: &[[u32; LANES]; 4]) {
            for (l, &a) in at.iter().enumerate() {
                if mask >> l & 1 == 1 {
                    let (w, _) = bytes[a as usize..a as usize + 4 * N].as_chunks_mut::<4>();
                    for k in 0..N {
                        w[k] = v[k][l].to_le_bytes();
                    }
                }
            }
        }
        match len {
            16 => copy::<4>(&mut self.bytes, (at, mask), v),
            8 => copy::<2>(&mut self.bytes, (at, mask), v),
            4 => copy::<1>(&mut self.bytes, (at, mask), v),
            _ => {
                for (l, &a) in at.iter().enumerate().filter(|(l, _)| mask >> l & 1 == 1) {
                    self.bytes[a as usize..a as usize + len].copy_from_slice(&v[0][l].to_le_bytes()[..len]);
                }
            }
        }
    }

    #[inline(always)]
    pub fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

/// Sixteen bytes as words.
#[inline(always)]
pub(crate) fn words(b: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|n| u32::from_le_bytes([b[4 * n], b[4 * n + 1], b[4 * n + 2], b[4 * n + 3]]))
}

/// Words as sixteen bytes.
#[inline(always)]
pub(crate) fn raw(v: [u32; 4]) -> [u8; 16] {
    let mut b = [0; 16];
    for (n, v) in v.iter().enumerate() {
        b[4 * n..4 * n + 4].copy_from_slice(&v.to_le_bytes());
    }
    b
}
