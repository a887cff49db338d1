//! The shared memory of one block.

use crate::finding::Kind;
use crate::memory::Access;

/// Bytes, which of them were written, and where variables lie.
pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    /// Four bits for each word.
    known: Vec<u8>,
    /// First byte and the byte after the last of each variable; the dynamic one last.
    regions: Vec<(u32, u32)>,
}

impl Shared {
    pub fn new(regions: Vec<(u32, u32)>) -> Shared {
        let end = regions.iter().map(|r| r.1).max().unwrap_or(0).next_multiple_of(4) as usize;
        // what nobody wrote is NaN in every format
        Shared { bytes: vec![0xFF; end], known: vec![0; end / 4], regions }
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
            _ => self.known[at / 4..(at + len).div_ceil(4)].iter().all(|&k| k == 15),
        }
    }

    #[inline(always)]
    pub fn learn(&mut self, at: usize, len: usize) {
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
