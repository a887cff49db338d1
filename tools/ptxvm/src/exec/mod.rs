//! One block: its warps, its memory, and what is under way in it.

mod access;
mod atomics;
mod copies;
mod group;
mod lanes;
mod matrix;
mod mbarrier;
mod panels;
mod row;
mod run;
mod step;
mod tiles;
mod warp;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use crate::memory::Memory;
use crate::options::{Options, Rng, Schedule};
use crate::program::{Inst, Kernel};
use crate::regs::{File, LANES, Reg, Regs};
use crate::shadow::Shadow;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::watch::{Order, Watch};

use warp::Warp;

/// What a launch gives to each of its blocks.
pub(crate) struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub memory: &'a Memory,
    pub options: &'a Options,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub params: Vec<u8>,
    /// Rows of constants and of what is the same for all warps; copied when a warp starts.
    pub regs: Regs,
    /// Static variables and dynamic memory.
    pub regions: Vec<(u32, u32)>,
    /// What orders blocks, where races between them are looked for.
    pub order: Option<Order>,
}

/// Memory of blocks that have ended, for those that start on the same thread.
#[derive(Default)]
struct Spare {
    regs: Vec<Regs>,
    shared: Option<Shared>,
    shadow: Option<Shadow>,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

impl Launch<'_> {
    /// The registers of a warp that starts: rows that no constant or special is in hold anything, and count as never
    /// written.
    fn registers(&self, spare: Option<Regs>) -> Regs {
        let Some(mut r) = spare else { return self.regs.clone() };
        let rows = self.kernel.rows;
        r.word.resize(rows[0].max(r.word.len()), [0; LANES]);
        r.wide.resize(rows[1].max(r.wide.len()), [0; LANES]);
        r.flag.resize(rows[2].max(r.flag.len()), 0);
        r.known.clone_from(&self.regs.known);
        let uniform = self.kernel.constants.iter().map(|c| c.0).chain(self.kernel.specials.iter().map(|s| s.0));
        for Reg { file, row } in uniform {
            let n = row as usize;
            match file {
                File::Word => r.word[n] = self.regs.word[n],
                File::Wide => r.wide[n] = self.regs.wide[n],
                File::Flag => r.flag[n] = self.regs.flag[n],
            }
        }
        r
    }
}

/// Work that is closed in groups.
struct Groups<T> {
    open: Vec<T>,
    closed: VecDeque<Vec<T>>,
}

impl<T> Default for Groups<T> {
    fn default() -> Groups<T> {
        Groups { open: Vec::new(), closed: VecDeque::new() }
    }
}

impl<T> Groups<T> {
    fn close(&mut self) {
        self.closed.push_back(std::mem::take(&mut self.open));
    }

    /// The oldest group beyond the newest `keep`.
    fn next(&mut self, keep: usize) -> Option<Vec<T>> {
        if self.closed.len() > keep { self.closed.pop_front() } else { None }
    }
}

/// One `cp.async` of a warp, done or to be done.
struct Copy {
    mask: u32,
    to: [u64; LANES],
    from: [u64; LANES],
    /// Bytes that are written, and bytes of each lane that are read.
    bytes: u32,
    size: [u32; LANES],
    done: bool,
    time: u32,
    line: u32,
    /// Lanes whose copies an mbarrier waits for, so that no group need.
    counted: u32,
}

/// A bulk store: to be done, and the shared memory it reads.
struct BulkStore {
    work: Option<copies::Transfer>,
    words: std::ops::Range<usize>,
    held: bool,
}

/// A `wgmma` to be carried out.
struct Product {
    pc: u32,
    add: bool,
    done: bool,
    /// Sixteen bytes each of B, then of A where it is in shared memory.
    chunks: Vec<u32>,
}

/// A barrier of the block.
#[derive(Default)]
struct Bar {
    warps: Option<u32>,
    arrived: u32,
    waiting: Vec<usize>,
    /// For `bar.red`: lanes and true lanes so far; who gets the result.
    votes: [u32; 2],
    results: Vec<(usize, crate::program::Vote, Reg, u32)>,
}

/// Number of the barrier of a cluster, after those that kernels name.
const CLUSTER: usize = 16;

/// An mbarrier (PTX ISA 9.7.13.15).
struct Mbarrier {
    expected: i64,
    pending: i64,
    bytes: i64,
    phase: u32,
}

/// How a turn ends.
enum End {
    /// Every lane has exited.
    Done,
    /// The warp waits for others.
    Waits,
    /// Every part sleeps; where, and after how many instructions.
    Spins(u64, u32),
    /// The turn was long enough.
    Enough,
    /// The warp stands at an instruction of its warp group.
    Group,
}

/// One block that runs.
pub(crate) struct Block<'a> {
    launch: &'a Launch<'a>,
    pub at: [u32; 3],
    warps: Vec<Warp>,
    shared: Shared,
    local: Vec<u8>,
    local_known: Vec<bool>,
    bars: [Bar; CLUSTER + 1],
    mbars: BTreeMap<u32, Mbarrier>,
    /// First and last byte of mbarriers, to tell ordinary accesses apart quickly.
    mbar_span: (u32, u32),
    shadow: Option<Shadow>,
    /// What this block does to global memory that others may see.
    watch: Watch<'a>,
    /// The same where others may look at the same time.
    strong: Watch<'a>,
    /// Memory that this block does not need.
    spare: Spare,
    /// Bulk loads issued and not done.
    pending: Vec<copies::Transfer>,
    /// Products of each warp group, and memory for the operands of one: eight columns of B, then the rows of A by eights.
    products: Vec<Groups<Product>>,
    panels: Vec<panels::Panel>,
    /// Registers per thread of each warp group.
    allotted: Vec<u32>,
    events: u64,
    rng: Rng,
    pub stats: Stats,
    /// Place of the instruction that runs: warp, its number in the code, lanes.
    pub place: (usize, u32, u32),
}

/// Lanes of a mask.
fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        let l = m.trailing_zeros() as usize;
        m &= m.wrapping_sub(1);
        (l < LANES).then_some(l)
    })
}

impl<'a> Block<'a> {
    pub fn new(launch: &'a Launch<'a>, at: [u32; 3]) -> Block<'a> {
        let threads = launch.block.iter().product::<u32>();
        let n = threads.div_ceil(32) as usize;
        let mut spare = SPARE.with_borrow_mut(std::mem::take);
        let shared = Shared::new(&launch.regions, spare.shared.take());
        let number = u64::from(at[0])
            + u64::from(launch.grid[0]) * (u64::from(at[1]) + u64::from(launch.grid[1]) * u64::from(at[2]));
        let seed = match launch.options.schedule {
            Schedule::Random(s) => s,
            _ => 0,
        };
        let local = launch.kernel.local_bytes as usize * threads as usize;
        // what a block of this many threads gets of 65,536 registers, by eights
        let each = ((65_536 / threads.max(1)) & !7).min(248);
        Block {
            at,
            warps: (0..n).map(|w| Warp::start(launch, at, w, threads, spare.regs.pop())).collect(),
            shadow: launch.options.check.then(|| Shadow::new(n, shared.words(), spare.shadow.take())),
            watch: Watch::new(launch.kernel.has_nc, launch.order.as_ref(), number),
            strong: Watch::new(launch.kernel.has_nc, None, number),
            spare,
            shared,
            local: vec![0xFF; local],
            local_known: vec![false; local],
            bars: Default::default(),
            mbars: BTreeMap::new(),
            mbar_span: (u32::MAX, 0),
            pending: Vec::new(),
            products: std::iter::repeat_with(Groups::default).take(n.div_ceil(4)).collect(),
            panels: Vec::new(),
            allotted: vec![each; n.div_ceil(4)],
            events: 0,
            rng: Rng::new(seed ^ crate::numeric::mix(number)),
            stats: Stats::default(),
            place: (0, 0, 1),
            launch,
        }
    }

    /// Gives memory to the blocks that follow.
    pub fn retire(mut self) {
        self.spare.regs.extend(self.warps.into_iter().map(|w| w.regs).filter(|r| !r.word.is_empty()));
        self.spare.shared = Some(self.shared);
        self.spare.shadow = self.shadow.or(self.spare.shadow);
        SPARE.set(self.spare);
    }

    fn code(&self) -> &'a [Inst] {
        &self.launch.kernel.code
    }

    /// Asynchronous work is done where it is issued.
    fn eager(&mut self) -> bool {
        match self.launch.options.schedule {
            Schedule::Eager => true,
            Schedule::Random(_) => self.rng.below(2) == 0,
            _ => false,
        }
    }

    /// A `try_wait` that could succeed fails.
    fn times_out(&mut self) -> bool {
        matches!(self.launch.options.schedule, Schedule::Lazy | Schedule::Random(_)) && self.rng.below(10) < 3
    }
}
