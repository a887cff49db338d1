//! One block: its warps, its memory, and the loop that runs a warp until it must wait.

mod access;
mod copies;
mod group;
mod lanes;
mod matrix;
mod panels;
mod run;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use crate::finding::{Kind, Step, fault, fault_at};
use crate::memory::Memory;
use crate::options::{Options, Rng, Schedule};
use crate::program::{Exec, Fence, Inst, Kernel, Lanes, Special};
use crate::regs::{File, LANES, Reg, Regs};
use crate::shadow::Shadow;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::watch::{Order, Watch};

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

/// Lanes of a warp that stand at the same instruction.
#[derive(Clone, Copy, Debug)]
struct Part {
    pc: u32,
    mask: u32,
    rest: Rest,
}

/// Why a part does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It does.
    No,
    /// A `try_wait` failed; its siblings go first.
    Asleep,
    /// It stands at an instruction that all lanes must reach together.
    Parked,
}

/// What a whole warp waits for.
#[derive(Clone, Debug)]
enum Wait {
    /// `bar.sync` with this number; for `bar.red` the destination.
    Bar(usize),
    /// An instruction of its warp group.
    Group(u32),
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

#[derive(Default)]
struct Warp {
    id: usize,
    regs: Regs,
    parts: Vec<Part>,
    /// Lanes that have exited or never were.
    gone: u32,
    wait: Option<Wait>,
    /// Where the last turn ended in a failed `try_wait`.
    spun: u64,
    copies: Groups<Copy>,
    stores: Groups<BulkStore>,
    /// Products in flight that use a row.
    busy: Vec<u32>,
    /// Number of the `wgmma.fence` after which a row was touched last; the count of fences.
    touched: Vec<u32>,
    fences: u32,
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
    /// Products of each warp group.
    products: Vec<Groups<Product>>,
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

    /// Runs a warp until it must wait, spins or ends.
    fn turn(&mut self, w: usize) -> Step<End> {
        let mut warp = std::mem::take(&mut self.warps[w]);
        let end = self.advance(&mut warp);
        self.warps[w] = warp;
        end
    }

    fn advance(&mut self, warp: &mut Warp) -> Step<End> {
        let code = self.code();
        let mut left = match self.launch.options.schedule {
            Schedule::Random(_) => 1 + (1 << self.rng.below(12)) as u32,
            _ => 1 << 16,
        };
        let mut n = 0;
        loop {
            let Some(mut cur) = warp.pick() else {
                if warp.parts.is_empty() {
                    self.events += 1;
                    return Ok(End::Done);
                }
                if warp.parts.iter().all(|p| p.rest == Rest::Parked) {
                    return self.diverged(warp);
                }
                let place = warp
                    .parts
                    .iter()
                    .fold(0, |h, p| crate::numeric::mix(h ^ u64::from(p.pc) << 32 ^ u64::from(p.mask)));
                warp.parts.iter_mut().for_each(|p| p.rest = Rest::No);
                return Ok(End::Spins(place, n));
            };
            loop {
                if !warp.parts.is_empty() {
                    cur.mask |= warp.meet(cur.pc);
                }
                if left == 0 {
                    warp.parts.push(cur);
                    return Ok(End::Enough);
                }
                left -= 1;
                n += 1;
                self.place = (warp.id, cur.pc, cur.mask);
                self.stats.instructions += 1;
                let Some(inst) = code.get(cur.pc as usize) else {
                    warp.gone |= cur.mask;
                    break;
                };
                let mut ex = cur.mask;
                if let Some((row, negated)) = inst.guard {
                    let r = Reg { file: File::Flag, row };
                    known(&warp.regs, r, cur.mask)?;
                    ex &= warp.regs.flag[row as usize] ^ if negated { u32::MAX } else { 0 };
                }
                match &inst.exec {
                    Exec::Branch(to) => {
                        if ex == cur.mask {
                            cur.pc = *to;
                        } else if ex != 0 {
                            warp.parts.push(Part { pc: *to, mask: ex, rest: Rest::No });
                            cur.mask &= !ex;
                            cur.pc += 1;
                        } else {
                            cur.pc += 1;
                        }
                        if !warp.parts.is_empty() {
                            warp.parts.push(cur);
                            break;
                        }
                        continue;
                    }
                    Exec::Exit => {
                        warp.gone |= ex;
                        cur.mask &= !ex;
                        self.events += 1;
                        if cur.mask == 0 {
                            break;
                        }
                        cur.pc += 1;
                        continue;
                    }
                    _ => {}
                }
                if ex == 0 {
                    cur.pc += 1;
                    continue;
                }
                if let Some(all) = together(&inst.exec) {
                    if ex != cur.mask {
                        return fault(Kind::Divergence, "predicated off for part of the warp");
                    }
                    if all && warp.gone != 0 {
                        return fault(
                            Kind::Divergence,
                            format!("not all lanes of the warp are there (missing: {:#x})", warp.gone),
                        );
                    }
                    if !warp.parts.is_empty() {
                        warp.parts.push(Part { rest: Rest::Parked, ..cur });
                        break;
                    }
                }
                for &r in &inst.reads {
                    known(&warp.regs, r, ex)?;
                }
                match &inst.exec {
                    Exec::Alu(f) => {
                        if self.launch.kernel.has_wgmma {
                            warp.touch(inst)?;
                        }
                        f(&mut warp.regs, ex);
                    }
                    Exec::Bar { .. } | Exec::ClusterWait => {
                        cur.pc += 1;
                        let waits = match &inst.exec {
                            Exec::Bar { id, threads, arrive, red } => {
                                let id = warp.regs.lane(*id, ex.trailing_zeros() as usize) as usize;
                                if id >= CLUSTER {
                                    return fault(Kind::Barrier, format!("barrier {id}, expected 0 to 15"));
                                }
                                self.bar(warp, ex, id, *threads, *arrive, *red)?
                            }
                            _ => self.bar(warp, ex, CLUSTER, None, false, None)?,
                        };
                        if waits {
                            warp.parts.push(cur);
                            return Ok(End::Waits);
                        }
                        continue;
                    }
                    Exec::Wgmma(_) | Exec::WgFence | Exec::WgCommit | Exec::WgWait(_) | Exec::SetMaxReg { .. } => {
                        warp.wait = Some(Wait::Group(cur.pc));
                        warp.parts.push(cur);
                        return Ok(End::Group);
                    }
                    exec => {
                        if self.launch.kernel.has_wgmma {
                            warp.touch(inst)?;
                        }
                        if let Some(mask) = meeting(exec)
                            && !self.assemble(warp, cur, ex, mask)?
                        {
                            warp.parts.push(Part { rest: Rest::Parked, ..cur });
                            break;
                        }
                        if self.exec(warp, inst, ex)? {
                            // a failed wait: the others go first
                            cur.pc += 1;
                            learn(&mut warp.regs, inst, ex);
                            warp.parts.push(Part { rest: Rest::Asleep, ..cur });
                            break;
                        }
                    }
                }
                learn(&mut warp.regs, inst, ex);
                cur.pc += 1;
            }
        }
    }

    /// Everything that is no control flow; whether the warp's part should sleep.
    fn exec(&mut self, warp: &mut Warp, inst: &Inst, ex: u32) -> Step<bool> {
        match &inst.exec {
            Exec::Divide(f, by) => {
                if let Some(l) = lanes_of(ex).find(|&l| warp.regs.lane(*by, l) & width_mask(inst) == 0) {
                    return Err(Box::new(crate::finding::Fault {
                        kind: Kind::Division,
                        lane: Some(l),
                        address: None,
                        message: "division by zero, whose result is unspecified".into(),
                    }));
                }
                f(&mut warp.regs, ex);
            }
            Exec::Mapa(f, rank) => {
                if let Some(l) = lanes_of(ex).find(|&l| warp.regs.lane(*rank, l) != 0) {
                    let n = warp.regs.lane(*rank, l);
                    return fault_at(Kind::OutOfBounds, l, n, "block of a cluster, which has one: found the rank");
                }
                f(&mut warp.regs, ex);
            }
            Exec::Trap => return fault(Kind::Trap, "the kernel stops itself"),
            Exec::Nop => {}
            Exec::Load { space, ty, dst, from, order } => self.load(warp, ex, *space, *ty, dst, *from, *order)?,
            Exec::Store { space, ty, src, to, order } => self.store(warp, ex, *space, *ty, src, *to, *order)?,
            Exec::Atom { space, ty, op, release, dst, to, a, b } => {
                if *release {
                    self.watch.fence();
                }
                self.atom(warp, ex, (*space, *ty, *op), *dst, *to, (*a, *b))?
            }
            Exec::WarpSync(_) => {}
            Exec::Shfl { mode, dst, pred, src, b, c, .. } => {
                lanes::shuffle(&mut warp.regs, ex, *mode, (*dst, *pred), [*src, *b, *c])?
            }
            Exec::Vote { mode, dst, src, negated, mask } => {
                lanes::vote(&mut warp.regs, ex, *mode, *dst, (*src, *negated), *mask)
            }
            Exec::Match { all, dst, pred, src, mask } => {
                lanes::matching(&mut warp.regs, ex, *all, (*dst, *pred), *src, *mask)
            }
            Exec::Redux { op, signed, dst, src, mask } => {
                lanes::redux(&mut warp.regs, ex, (*op, *signed), *dst, *src, *mask)
            }
            Exec::Elect { dst, pred, mask } => lanes::elect(&mut warp.regs, ex, *dst, *pred, *mask),
            Exec::ActiveMask(d) => lanes_of(ex).for_each(|l| warp.regs.set_lane(*d, l, ex.into())),
            Exec::LdMatrix { space, trans, dst, from } => self.ldmatrix(warp, *space, *trans, dst, *from)?,
            Exec::StMatrix { space, trans, src, to } => self.stmatrix(warp, *space, *trans, src, *to)?,
            Exec::Mma(m) => matrix::mma(&mut warp.regs, m),
            Exec::CpAsync { bytes, to, from, size } => self.cp_async(warp, ex, *bytes, *to, *from, *size, inst.line)?,
            Exec::CpCommit => self.cp_commit(warp),
            Exec::CpWait(keep) => self.cp_wait(warp, *keep)?,
            Exec::Mbarrier { op, at } => return self.mbarrier(warp, ex, *op, *at),
            Exec::Fence(kind) => {
                if *kind == Fence::Memory {
                    self.watch.fence();
                }
                if let Some(s) = &mut self.shadow {
                    match kind {
                        Fence::Memory => {}
                        Fence::Proxy => s.fence(warp.id),
                        Fence::MbarrierInit => s.init_fence(warp.id),
                    }
                }
            }
            Exec::PrefetchMap(a) => {
                for l in lanes_of(ex) {
                    self.tensor_map(warp, l, *a)?;
                }
            }
            Exec::TensorLoad { to, map, at, bar } => self.tensor_load(warp, ex, *to, *map, at, *bar)?,
            Exec::TensorStore { from, map, at } => self.tensor_store(warp, ex, *from, *map, at, None)?,
            Exec::BulkLoad { to, from, bytes, bar } => self.bulk_load(warp, ex, *to, *from, *bytes, *bar)?,
            Exec::BulkStore { to, from, bytes } => self.bulk_store(warp, ex, *to, *from, *bytes)?,
            Exec::BulkReduce { op, ty, to, from, bytes } => {
                self.bulk_reduce(warp, ex, (*op, *ty), *to, *from, *bytes)?
            }
            Exec::TensorReduce { op, from, map, at } => self.tensor_store(warp, ex, *from, *map, at, Some(*op))?,
            Exec::CpArrive { at, noinc } => self.cp_arrive(warp, ex, *at, *noinc)?,
            Exec::BulkCommit => self.bulk_commit(warp),
            Exec::BulkWait { newest, read } => self.bulk_wait(warp, *newest as usize, *read)?,
            // handled by `advance` and by the warp group
            Exec::Alu(_) | Exec::Branch(_) | Exec::Exit | Exec::Bar { .. } | Exec::ClusterWait => {}
            Exec::Wgmma(_) | Exec::WgFence | Exec::WgCommit | Exec::WgWait(_) | Exec::SetMaxReg { .. } => {}
        }
        Ok(false)
    }

    /// Whether all lanes of the mask that a `.sync` instruction names are there.
    fn assemble(&self, warp: &Warp, cur: Part, ex: u32, mask: Reg) -> Step<bool> {
        if ex == u32::MAX && warp.regs.row64(mask).iter().all(|&m| m as u32 == u32::MAX) {
            return Ok(true);
        }
        let mut left = ex;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let m = warp.regs.lane(mask, first) as u32;
            let group = lanes_of(left).filter(|&l| warp.regs.lane(mask, l) as u32 == m).fold(0, |g, l| g | 1u32 << l);
            if group & !m != 0 {
                return fault(Kind::Divergence, format!("lanes {:#x} are not in their own mask {m:#x}", group & !m));
            }
            if m & warp.gone != 0 {
                return fault(
                    Kind::Divergence,
                    format!("the mask {m:#x} names lanes {:#x}, which have exited", m & warp.gone),
                );
            }
            if m & cur.mask & !group != 0 {
                return fault(
                    Kind::Divergence,
                    format!("the mask {m:#x} names lanes {:#x}, which pass by", m & cur.mask & !group),
                );
            }
            if m != group {
                return Ok(false);
            }
            left &= !group;
        }
        Ok(true)
    }

    /// All parts of a warp stand where the others are needed.
    fn diverged<T>(&self, warp: &Warp) -> Step<T> {
        let places: Vec<String> =
            warp.parts.iter().map(|p| format!("lanes {:#x} at {}", p.mask, self.where_is(p.pc))).collect();
        fault(Kind::Divergence, format!("lanes that must meet stand apart: {}", places.join(", ")))
    }

    /// Line and name of an instruction.
    fn where_is(&self, pc: u32) -> String {
        match self.code().get(pc as usize) {
            Some(i) => format!("line {} ({})", i.line, i.name),
            None => "the end".into(),
        }
    }
}

/// Registers must have been written in the lanes that read them.
#[inline(always)]
fn known(regs: &Regs, r: Reg, lanes: u32) -> Step {
    let missing = lanes & !regs.known(r);
    if missing == 0 { Ok(()) } else { unknown(missing) }
}

#[cold]
fn unknown(missing: u32) -> Step {
    let lane = Some(missing.trailing_zeros() as usize);
    Err(Box::new(crate::finding::Fault {
        kind: Kind::Uninitialised,
        lane,
        address: None,
        message: "a register that nobody wrote".into(),
    }))
}

#[inline(always)]
fn learn(regs: &mut Regs, inst: &Inst, ex: u32) {
    for &r in &inst.writes {
        regs.learn(r, ex);
    }
}

/// Bits of the type an instruction ends in.
fn width_mask(inst: &Inst) -> u64 {
    if inst.name.ends_with("16") { 0xFFFF } else { u64::MAX }
}

/// Instructions that a whole warp reaches together; whether exited lanes are a mistake (for barriers they are not).
fn together(e: &Exec) -> Option<bool> {
    match e {
        Exec::Bar { .. } | Exec::ClusterWait => Some(false),
        Exec::LdMatrix { .. } | Exec::StMatrix { .. } | Exec::Mma(_) | Exec::Wgmma(_) | Exec::WgFence => Some(true),
        Exec::WgCommit | Exec::WgWait(_) | Exec::SetMaxReg { .. } => Some(true),
        _ => None,
    }
}

/// The mask of lanes that an instruction waits for.
fn meeting(e: &Exec) -> Option<Reg> {
    match e {
        Exec::WarpSync(mask) => Some(*mask),
        Exec::Vote { mask, .. } => *mask,
        Exec::Shfl { mask, .. } | Exec::Match { mask, .. } => Some(*mask),
        Exec::Redux { mask, .. } | Exec::Elect { mask, .. } => Some(*mask),
        _ => None,
    }
}

impl Warp {
    fn start(launch: &Launch, at: [u32; 3], w: usize, threads: u32, spare: Option<Regs>) -> Warp {
        let mut regs = launch.registers(spare);
        let first = w as u32 * 32;
        let live = if threads - first >= 32 { u32::MAX } else { (1 << (threads - first)) - 1 };
        let [bx, by, _] = launch.block;
        for &(r, s) in &launch.kernel.specials {
            for l in 0..LANES {
                let t = first + l as u32;
                let tid = [t % bx, t / bx % by, t / (bx * by)];
                let ones = |n: u32| if n >= 32 { u32::MAX } else { (1u32 << n) - 1 };
                let v = match s {
                    Special::Tid(a) => tid[a as usize],
                    Special::Ctaid(a) => at[a as usize],
                    Special::Lane => l as u32,
                    Special::Warp => w as u32,
                    Special::LaneMask(m) => match m {
                        Lanes::Eq => 1 << l,
                        Lanes::Lt => ones(l as u32),
                        Lanes::Le => ones(l as u32 + 1),
                        Lanes::Gt => !ones(l as u32 + 1),
                        Lanes::Ge => !ones(l as u32),
                    },
                    // the same in all warps of a launch: filled in `regs`
                    _ => continue,
                };
                regs.set_lane(r, l, v.into());
            }
        }
        let watched = if launch.kernel.has_wgmma { launch.kernel.rows[0] } else { 0 };
        Warp {
            id: w,
            regs,
            parts: vec![Part { pc: 0, mask: live, rest: Rest::No }],
            gone: !live,
            busy: vec![0; watched],
            touched: vec![0; watched],
            ..Warp::default()
        }
    }

    fn done(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes the part that stands first in the code: so lanes that left a loop or a branch wait for the others at its
    /// end, and go on together.
    fn pick(&mut self) -> Option<Part> {
        let n = (0..self.parts.len()).filter(|&n| self.parts[n].rest == Rest::No).min_by_key(|&n| self.parts[n].pc)?;
        Some(self.parts.swap_remove(n))
    }

    /// Lanes of other parts that stand at the same place; they come along.
    fn meet(&mut self, pc: u32) -> u32 {
        let mut mask = 0;
        self.parts.retain(|p| {
            mask |= if p.pc == pc { p.mask } else { 0 };
            p.pc != pc
        });
        mask
    }

    /// Registers of a product in flight must not be touched, and those touched need a fence before the next.
    fn touch(&mut self, inst: &Inst) -> Step {
        for &r in inst.reads.iter().chain(&inst.writes) {
            if r.file == File::Word {
                if self.busy[r.row as usize] > 0 {
                    return fault(Kind::InFlight, "a register of a wgmma that was not waited for");
                }
                self.touched[r.row as usize] = self.fences;
            }
        }
        Ok(())
    }
}
