//! What a launch cost, in figures that do not depend on the machine that plays it.

/// Counts of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Instructions, one for all lanes of a warp.
    pub instructions: u64,
    /// Bytes loaded from global memory, by threads and by asynchronous copies.
    pub global_read: u64,
    /// Bytes stored to global memory.
    pub global_written: u64,
    /// Sectors of 32 bytes that loads and stores of warps touched.
    pub global_sectors: u64,
    /// Bytes loaded from shared memory; operands of `wgmma` are not counted.
    pub shared_read: u64,
    /// Bytes stored to shared memory.
    pub shared_written: u64,
    /// Extra turns that accesses to shared memory took, because lanes met in a bank.
    pub bank_conflicts: u64,
    /// Bytes loaded from and stored to local memory.
    pub local: u64,
}

impl Stats {
    /// The sum.
    pub fn add(&mut self, o: &Stats) {
        self.instructions += o.instructions;
        self.global_read += o.global_read;
        self.global_written += o.global_written;
        self.global_sectors += o.global_sectors;
        self.shared_read += o.shared_read;
        self.shared_written += o.shared_written;
        self.bank_conflicts += o.bank_conflicts;
        self.local += o.local;
    }

    /// Names and values.
    pub fn list(&self) -> [(&'static str, u64); 8] {
        [
            ("instructions", self.instructions),
            ("global_read", self.global_read),
            ("global_written", self.global_written),
            ("global_sectors", self.global_sectors),
            ("shared_read", self.shared_read),
            ("shared_written", self.shared_written),
            ("bank_conflicts", self.bank_conflicts),
            ("local", self.local),
        ]
    }
}

/// Sectors of 32 bytes that a warp touches.
pub(crate) fn sectors(at: &[(usize, u64)], len: usize) -> u64 {
    let mut seen: [u64; 64] = [0; 64];
    let mut n = 0;
    for &(_, a) in at {
        let s = a / 32 + 1;
        // neighbours come one after the other
        if n > 0 && seen[n - 1] == s || seen[..n].contains(&s) {
            continue;
        }
        if n < 64 {
            seen[n] = s;
            n += 1;
        }
    }
    // aligned accesses of up to 16 bytes lie in one sector
    debug_assert!(len <= 32);
    n as u64
}

/// Turns beyond the first: in each turn a bank gives one word. Wide accesses go by halves and quarters of a warp.
pub(crate) fn conflicts(at: &[(usize, u64)], len: usize) -> u64 {
    let per = 32 / len.div_ceil(4).max(1);
    let mut extra = 0;
    for part in at.chunk_by(|a, b| a.0 / per == b.0 / per) {
        let (mut first, mut taken, mut meets) = ([0u64; 32], 0u32, false);
        for &(_, a) in part {
            for w in a / 4..(a + len as u64).div_ceil(4) {
                let b = (w % 32) as usize;
                meets |= taken >> b & 1 == 1 && first[b] != w;
                taken |= 1 << b;
                first[b] = w;
            }
        }
        if meets {
            extra += turns(part, len) - 1;
        }
    }
    extra
}

/// The most words that one bank gives: of a part of a warp, which asks for 32 at most.
fn turns(part: &[(usize, u64)], len: usize) -> u64 {
    // words by bank, in a list for each
    let (mut words, mut next, mut head, mut count) = ([0u64; 64], [usize::MAX; 64], [usize::MAX; 32], [0u64; 32]);
    let mut n = 0;
    for w in part.iter().flat_map(|&(_, a)| a / 4..(a + len as u64).div_ceil(4)).take(64) {
        let b = (w % 32) as usize;
        let mut at = head[b];
        while at != usize::MAX && words[at] != w {
            at = next[at];
        }
        if at == usize::MAX {
            (words[n], next[n], head[b]) = (w, head[b], n);
            count[b] += 1;
            n += 1;
        }
    }
    count.into_iter().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(f: impl Fn(u64) -> u64) -> Vec<(usize, u64)> {
        (0..32).map(|l| (l as usize, f(l))).collect()
    }

    #[test]
    fn sectors_and_conflicts_of_known_patterns() {
        assert_eq!(sectors(&lanes(|l| 4 * l), 4), 4);
        assert_eq!(sectors(&lanes(|l| 128 * l), 4), 32);
        assert_eq!(conflicts(&lanes(|l| 4 * l), 4), 0);
        assert_eq!(conflicts(&lanes(|_| 64), 4), 0, "one word goes to all");
        assert_eq!(conflicts(&lanes(|l| 8 * l), 4), 1);
        assert_eq!(conflicts(&lanes(|l| 128 * l), 4), 31);
        assert_eq!(conflicts(&lanes(|l| 16 * l), 16), 0, "four quarters without a conflict");
    }
}
