//! How a launch is carried out: in which order, how strictly.

use std::str::FromStr;

/// The order of what a device leaves open: which warp runs next, and when asynchronous work is done. A kernel that is
/// right gives the same bits under all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// Asynchronous work is done where it is issued; warps run by number.
    #[default]
    Eager,
    /// Asynchronous work is done when it is waited for, loads by bulk copies when every warp waits; `try_wait` times out
    /// now and then.
    Lazy,
    /// Blocks run one after the other, their warps by number; asynchronous work is done late.
    Ascending,
    /// Blocks run one after the other, the last one first, and so do their warps; asynchronous work is done late.
    Descending,
    /// Warps run in random order in turns of random length, asynchronous work is done at random times, `try_wait` times
    /// out now and then.
    Random(u64),
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(s: &str) -> Result<Schedule, String> {
        Ok(match s {
            "eager" => Schedule::Eager,
            "lazy" => Schedule::Lazy,
            "ascending" => Schedule::Ascending,
            "descending" => Schedule::Descending,
            _ => match s.strip_prefix("random:").and_then(|n| n.parse().ok()) {
                Some(n) => Schedule::Random(n),
                None => return Err(format!("`{s}`, expected eager, lazy, ascending, descending or random:SEED")),
            },
        })
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Schedule::Eager => f.write_str("eager"),
            Schedule::Lazy => f.write_str("lazy"),
            Schedule::Ascending => f.write_str("ascending"),
            Schedule::Descending => f.write_str("descending"),
            Schedule::Random(n) => write!(f, "random:{n}"),
        }
    }
}

/// Options of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The order of things.
    pub schedule: Schedule,
    /// Watch shared memory for races, fences and waits that are missing, and global memory for races between blocks.
    /// Everything else is always checked.
    pub check: bool,
    /// Moves results of approximate instructions inside of their bounds, by a hash of this seed.
    pub perturb: Option<u64>,
    /// Warp instructions of one block after which it is given up.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { schedule: Schedule::Eager, check: true, perturb: None, limit: 1 << 32 }
    }
}

/// A small generator (xorshift64*), for schedules only.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(crate::numeric::mix(seed) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}
