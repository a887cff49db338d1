//! Loads, stores and atomics of lanes, and `ldmatrix`.

use half::{bf16, f16};

use super::{Block, Mbarrier, Warp, lanes_of};
use crate::decode::{LOCAL, PARAM, SHARED, WINDOWS_END};
use crate::finding::{Fault, Kind, Step, fault_at};
use crate::memory::Access;
use crate::numeric::{Narrow, add_narrow};
use crate::program::{Address, Rmw, Strength};
use crate::regs::{File, LANES, Lane, Reg, Regs};
use crate::stats::{conflicts, sectors};
use crate::types::{Space, Type};
use crate::watch::Watch;

/// Places a fault of memory.
pub(super) fn placed<T>(r: Access<T>, lane: usize, address: u64) -> Step<T> {
    r.map_err(|(kind, message)| Box::new(Fault { kind, lane: Some(lane), address: Some(address), message }))
}

fn by_lane(mut f: Box<Fault>, lane: usize) -> Box<Fault> {
    f.lane.get_or_insert(lane);
    f
}

/// The space of a generic address, and the address there.
fn resolve(space: Space, a: u64) -> (Space, u64) {
    match (space, a) {
        (Space::Generic, PARAM..SHARED) => (Space::Param, a),
        (Space::Generic, SHARED..LOCAL) => (Space::Shared, a - SHARED),
        (Space::Generic, LOCAL..WINDOWS_END) => (Space::Local, a - LOCAL),
        (Space::Generic | Space::Const, _) => (Space::Global, a),
        _ => (space, a),
    }
}

/// An address that must be in shared memory.
fn in_shared(space: Space, a: u64, lane: usize) -> Step<u64> {
    match resolve(space, a) {
        (Space::Shared, a) => Ok(a),
        _ => fault_at(Kind::OutOfBounds, lane, a, "a matrix outside of shared memory"),
    }
}

/// The addresses of the lanes, without those of no lane.
fn addresses(warp: &Warp, ex: u32, a: Address, out: &mut [(usize, u64); LANES]) -> usize {
    let row = warp.regs.row64(a.base);
    let mut n = 0;
    for l in lanes_of(ex) {
        out[n] = (l, row[l].wrapping_add(a.offset as u64));
        n += 1;
    }
    n
}

/// The address of one lane.
pub(super) fn address(warp: &Warp, lane: usize, a: Address) -> u64 {
    warp.regs.lane(a.base, lane).wrapping_add(a.offset as u64)
}

fn aligned(a: u64, len: usize, lane: usize) -> Step {
    if a.is_multiple_of(len as u64) {
        return Ok(());
    }
    fault_at(Kind::Misaligned, lane, a, format!("an access of {len} bytes"))
}

/// The addresses of a warp's access, and the runs of neighbouring bytes that they make: most accesses are one or few.
pub(super) struct Row {
    /// By lane; lanes that take no part have the address of one that does.
    pub at: [u64; LANES],
    pub mask: u32,
    runs: [(u64, u64); LANES],
    n: usize,
    /// The runs ascend, and none touches another.
    ascends: bool,
}

impl Row {
    #[inline(always)]
    pub(super) fn new(warp: &Warp, mask: u32, a: Address, len: usize) -> Row {
        let mut at = warp.regs.row64(a.base);
        at.iter_mut().for_each(|x| *x = x.wrapping_add(a.offset as u64));
        Row::of(at, mask, len)
    }

    #[inline(always)]
    pub(super) fn of(at: [u64; LANES], mask: u32, len: usize) -> Row {
        let len = len as u64;
        let mut row = Row { at, mask, runs: [(0, 0); LANES], n: 1, ascends: true };
        let first = at[mask.trailing_zeros() as usize & 31];
        if mask == u32::MAX {
            let apart = at.iter().enumerate().fold(0, |d, (l, &x)| d | x ^ first.wrapping_add(l as u64 * len));
            if apart == 0 {
                row.runs[0] = (first, first.wrapping_add(32 * len));
                return row;
            }
        } else {
            for (l, x) in row.at.iter_mut().enumerate() {
                *x = if mask >> l & 1 == 1 { *x } else { first };
            }
        }
        let (mut run, mut last) = ((first, first.wrapping_add(len)), first);
        row.n = 0;
        for x in row.at {
            if x == last {
                continue;
            }
            last = x;
            if x == run.1 {
                run.1 = x.wrapping_add(len);
            } else if x < run.0 || x.wrapping_add(len) > run.1 {
                row.push(run);
                run = (x, x.wrapping_add(len));
            }
        }
        row.push(run);
        row
    }

    #[inline(always)]
    fn push(&mut self, run: (u64, u64)) {
        self.ascends &= self.n == 0 || run.0 > self.runs[self.n - 1].1;
        self.runs[self.n] = run;
        self.n += 1;
    }

    pub(super) fn runs(&self) -> &[(u64, u64)] {
        &self.runs[..self.n]
    }

    pub(super) fn aligned(&self, len: usize) -> bool {
        self.at.iter().fold(0, |m, &a| m | a) & (len as u64 - 1) == 0
    }

    /// Whether a loop over lanes sees no address twice and no bank either.
    fn is_one_run(&self) -> bool {
        self.n == 1 && self.at.is_sorted()
    }

    /// Makes generic addresses those of the one space they are all in.
    #[inline(always)]
    fn resolve(&mut self, space: Space) -> Option<Space> {
        let (to, first) = resolve(space, self.runs[0].0);
        let by = self.runs[0].0.wrapping_sub(first);
        if space == Space::Generic {
            let inside = |a: u64| resolve(space, a).0 == to;
            if !self.runs().iter().all(|r| inside(r.0) && inside(r.1.wrapping_sub(1))) {
                return None;
            }
            if by != 0 {
                self.at.iter_mut().for_each(|a| *a -= by);
                self.runs[..self.n].iter_mut().for_each(|r| *r = (r.0 - by, r.1 - by));
            }
        }
        Some(to)
    }

    fn list(&self, out: &mut [(usize, u64); LANES]) -> usize {
        let mut n = 0;
        for l in lanes_of(self.mask) {
            out[n] = (l, self.at[l]);
            n += 1;
        }
        n
    }
}

/// Words of a row as the values of registers.
#[inline(always)]
fn deliver(regs: &mut Regs, ty: Type, dst: &[Reg], w: &[[u32; LANES]; 4], ex: u32) {
    let size = ty.bytes() as usize;
    for (n, &d) in dst.iter().enumerate() {
        match size {
            8 => {
                let v: [u64; LANES] =
                    std::array::from_fn(|l| u64::from(w[2 * n][l]) | u64::from(w[2 * n + 1][l]) << 32);
                u64::put(regs, d.row, &v, ex);
            }
            4 if d.file == File::Word => u32::put(regs, d.row, &w[n], ex),
            4 if ty == Type::S32 => i64::put(regs, d.row, &w[n].map(|v| i64::from(v as i32)), ex),
            4 => u64::put(regs, d.row, &w[n].map(u64::from), ex),
            _ => {
                let (row, shift) = (&w[n * size / 4], 8 * (n * size % 4));
                let v = match ty {
                    Type::S8 => row.map(|v| (v >> shift) as u8 as i8 as i64),
                    Type::S16 => row.map(|v| (v >> shift) as u16 as i16 as i64),
                    _ if size == 1 => row.map(|v| (v >> shift) as u8 as i64),
                    _ => row.map(|v| (v >> shift) as u16 as i64),
                };
                match d.file {
                    File::Wide => i64::put(regs, d.row, &v, ex),
                    _ => u32::put(regs, d.row, &v.map(|v| v as u32), ex),
                }
            }
        }
    }
}

/// Values of registers as words of a row.
#[inline(always)]
fn collect(regs: &Regs, ty: Type, src: &[Reg], w: &mut [[u32; LANES]; 4]) {
    let size = ty.bytes() as usize;
    for (n, &s) in src.iter().enumerate() {
        match (size, s.file) {
            (8, _) => {
                let v = regs.row64(s);
                w[2 * n] = v.map(|v| v as u32);
                w[2 * n + 1] = v.map(|v| (v >> 32) as u32);
            }
            (4, File::Word) => w[n] = regs.word[s.row as usize],
            (4, _) => w[n] = regs.row64(s).map(|v| v as u32),
            _ => {
                let (v, to, shift) = (regs.row64(s), n * size / 4, 8 * (n * size % 4));
                let ones = (1 << (8 * size)) - 1;
                for l in 0..LANES {
                    w[to][l] |= (v[l] as u32 & ones) << shift;
                }
            }
        }
    }
}

impl Block<'_> {
    #[allow(clippy::too_many_arguments)] // a load has that many parts
    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        space: Space,
        ty: Type,
        dst: &[Reg],
        from: Address,
        order: Strength,
    ) -> Step {
        let nc = order == Strength::Constant;
        let quiet = matches!(order, Strength::Relaxed | Strength::Ordered);
        if order == Strength::Ordered {
            self.watch.acquire();
        }
        let (size, len) = (ty.bytes() as usize, ty.bytes() as usize * dst.len());
        let mut row = Row::new(warp, ex, from, len);
        let mut w = [[0; LANES]; 4];
        if row.aligned(len)
            && let Some(to) = row.resolve(space)
            && self.load_row(warp.id, &row, to, len, (nc, quiet), &mut w)
        {
            deliver(&mut warp.regs, ty, dst, &w, ex);
            self.count_row(to, &row, len, false);
            return Ok(());
        }
        let mut at = [(0, 0); LANES];
        let n = addresses(warp, ex, from, &mut at);
        for &(l, a) in &at[..n] {
            let (space, a) = resolve(space, a);
            aligned(a, len, l)?;
            let v = match space {
                Space::Global => placed(self.launch.memory.load(a, len, nc, self.watching(quiet)), l, a)?,
                Space::Shared => {
                    self.ordinary(a, len, l)?;
                    self.shadow_read(warp.id, a, len, l)?;
                    placed(self.shared.load(a, len), l, a)?
                }
                Space::Param => self.param(a, len, l)?,
                _ => self.local_load(warp.id * 32 + l, a, len, l)?,
            };
            for (n, &d) in dst.iter().enumerate() {
                let v = match size {
                    8 => u64::from(v[2 * n]) | u64::from(v[2 * n + 1]) << 32,
                    4 => u64::from(v[n]),
                    _ => u64::from(v[n * size / 4] >> (8 * (n * size % 4))) & ((1 << (8 * size)) - 1),
                };
                let v = match ty {
                    Type::S8 => v as u8 as i8 as u64,
                    Type::S16 => v as u16 as i16 as u64,
                    Type::S32 => v as u32 as i32 as u64,
                    _ => v,
                };
                warp.regs.set_lane(d, l, v);
            }
        }
        self.count(space, &at[..n], len, false);
        Ok(())
    }

    /// Loads all lanes at once; false where anything is out of the ordinary, so that lanes go one by one and the fault
    /// is found with its lane.
    #[inline(always)]
    fn load_row(
        &mut self,
        warp: usize,
        row: &Row,
        space: Space,
        len: usize,
        (nc, quiet): (bool, bool),
        w: &mut [[u32; LANES]; 4],
    ) -> bool {
        match space {
            Space::Global => self.launch.memory.gather(&row.at, row.runs(), len, nc, self.watching(quiet), w),
            Space::Shared => {
                for &(from, end) in row.runs() {
                    let bytes = end.wrapping_sub(from) as usize;
                    let Ok(at) = self.shared.check(from, bytes, 1) else { return false };
                    if self.near_mbarriers(from, bytes) || !self.shared.knows(at, bytes) {
                        return false;
                    }
                    if let Some(s) = &mut self.shadow
                        && s.read(warp, at, bytes).is_err()
                    {
                        return false;
                    }
                }
                self.shared.gather(&row.at, len, w);
                true
            }
            // arguments are mostly the same for all lanes
            Space::Param if row.n == 1 && row.runs[0].1 - row.runs[0].0 == len as u64 => {
                let Ok(v) = self.param(row.runs[0].0, len, 0) else { return false };
                for (w, v) in w.iter_mut().zip(v) {
                    w.fill(v);
                }
                true
            }
            _ => false,
        }
    }

    /// Accesses that others may make at the same time are no races.
    #[inline(always)]
    fn watching(&self, quiet: bool) -> &Watch<'_> {
        if quiet { &self.strong } else { &self.watch }
    }

    #[allow(clippy::too_many_arguments)] // a store has that many parts
    pub(super) fn store(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        space: Space,
        ty: Type,
        src: &[Reg],
        to: Address,
        order: Strength,
    ) -> Step {
        let quiet = matches!(order, Strength::Relaxed | Strength::Ordered);
        if order == Strength::Ordered {
            self.watch.fence();
            self.watch.release();
        }
        let (size, len) = (ty.bytes() as usize, ty.bytes() as usize * src.len());
        let mut row = Row::new(warp, ex, to, len);
        if row.aligned(len)
            && let Some(space) = row.resolve(space)
            && matches!(space, Space::Global | Space::Shared)
        {
            let mut w = [[0; LANES]; 4];
            collect(&warp.regs, ty, src, &mut w);
            if self.store_row(warp.id, &row, space, len, quiet, &w) {
                self.count_row(space, &row, len, true);
                return Ok(());
            }
        }
        let mut at = [(0, 0); LANES];
        let n = addresses(warp, ex, to, &mut at);
        for &(l, a) in &at[..n] {
            let (space, a) = resolve(space, a);
            aligned(a, len, l)?;
            let mut v = [0u32; 4];
            for (n, &s) in src.iter().enumerate() {
                let x = warp.regs.lane(s, l);
                match size {
                    8 => (v[2 * n], v[2 * n + 1]) = (x as u32, (x >> 32) as u32),
                    4 => v[n] = x as u32,
                    _ => v[n * size / 4] |= (x as u32 & ((1 << (8 * size)) - 1)) << (8 * (n * size % 4)),
                }
            }
            match space {
                Space::Global => placed(self.launch.memory.store(a, len, v, self.watching(quiet)), l, a)?,
                Space::Shared => {
                    self.ordinary(a, len, l)?;
                    placed(self.shared.store(a, len, v), l, a)?;
                    if let Some(s) = &mut self.shadow {
                        s.write(warp.id, a as usize, len).map_err(|f| by_lane(f, l))?;
                    }
                }
                Space::Param => return fault_at(Kind::OutOfBounds, l, a, "a store to a kernel's parameters"),
                _ => self.local_store(warp.id * 32 + l, a, len, v, l)?,
            }
        }
        self.count(space, &at[..n], len, true);
        Ok(())
    }

    /// Stores all lanes at once; false, and nothing done, where lanes must go one by one.
    #[inline(always)]
    fn store_row(
        &mut self,
        warp: usize,
        row: &Row,
        space: Space,
        len: usize,
        quiet: bool,
        w: &[[u32; LANES]; 4],
    ) -> bool {
        if space == Space::Global {
            return self.launch.memory.scatter((&row.at, row.mask), row.runs(), len, self.watching(quiet), w);
        }
        for &(from, end) in row.runs() {
            let bytes = end.wrapping_sub(from) as usize;
            let Ok(at) = self.shared.check(from, bytes, 1) else { return false };
            if self.near_mbarriers(from, bytes) {
                return false;
            }
            if let Some(s) = &mut self.shadow
                && s.write(warp, at, bytes).is_err()
            {
                return false;
            }
        }
        self.shared.scatter((&row.at, row.mask), len, w);
        row.runs().iter().for_each(|r| self.shared.learn(r.0 as usize, (r.1 - r.0) as usize));
        true
    }

    /// Counts an access of which the runs are known.
    #[inline(always)]
    fn count_row(&mut self, space: Space, row: &Row, len: usize, store: bool) {
        let bytes = u64::from(row.mask.count_ones()) * len as u64;
        let mut list = [(0, 0); LANES];
        match space {
            Space::Global => {
                self.stats.global_sectors += if row.ascends {
                    let mut next = 0;
                    row.runs().iter().fold(0, |n, &(from, end)| {
                        let (first, end) = ((from / 32).max(next), end.div_ceil(32));
                        next = end;
                        n + (end - first.min(end))
                    })
                } else {
                    let n = row.list(&mut list);
                    sectors(&list[..n], len)
                };
                if store { self.stats.global_written += bytes } else { self.stats.global_read += bytes }
            }
            Space::Shared => {
                if !row.is_one_run() {
                    let n = row.list(&mut list);
                    self.stats.bank_conflicts += conflicts(&list[..n], len);
                }
                if store { self.stats.shared_written += bytes } else { self.stats.shared_read += bytes }
            }
            _ => {}
        }
    }

    /// Order comes before content: what is still to be copied is a race, whether it is there already or not.
    #[inline(always)]
    fn shadow_read(&mut self, warp: usize, a: u64, len: usize, lane: usize) -> Step {
        let Some(s) = &mut self.shadow else { return Ok(()) };
        let at = placed(self.shared.check(a, len, len), lane, a)?;
        s.read(warp, at, len).map_err(|f| by_lane(f, lane))
    }

    fn count(&mut self, space: Space, at: &[(usize, u64)], len: usize, store: bool) {
        let Some(&(_, first)) = at.first() else { return };
        let bytes = (at.len() * len) as u64;
        match (resolve(space, first).0, store) {
            (Space::Global, _) => {
                self.stats.global_sectors += sectors(at, len);
                if store { self.stats.global_written += bytes } else { self.stats.global_read += bytes }
            }
            (Space::Shared, _) => {
                self.stats.bank_conflicts += conflicts(at, len);
                if store { self.stats.shared_written += bytes } else { self.stats.shared_read += bytes }
            }
            (Space::Local, _) => self.stats.local += bytes,
            _ => {}
        }
    }

    /// Ordinary accesses must keep away from live mbarriers.
    #[inline(always)]
    pub(super) fn ordinary(&self, a: u64, len: usize, lane: usize) -> Step {
        if self.near_mbarriers(a, len) { self.near_mbarrier(a, len, lane) } else { Ok(()) }
    }

    /// Whether there may be mbarriers among these bytes.
    #[inline(always)]
    pub(super) fn near_mbarriers(&self, a: u64, len: usize) -> bool {
        a < u64::from(self.mbar_span.1) && a + len as u64 > u64::from(self.mbar_span.0)
    }

    fn near_mbarrier(&self, a: u64, len: usize, lane: usize) -> Step {
        let from = (a as u32).saturating_sub(7);
        match self.mbars.range(from..(a as u32).saturating_add(len as u32)).next() {
            None => Ok(()),
            Some(_) => fault_at(Kind::Mbarrier, lane, a, "an ordinary access to a live mbarrier"),
        }
    }

    pub(super) fn mbarrier_at(&mut self, a: u64, lane: usize) -> Step<&mut Mbarrier> {
        match u32::try_from(a).ok().and_then(|a| self.mbars.get_mut(&a)) {
            Some(b) => Ok(b),
            None => fault_at(Kind::Mbarrier, lane, a, "an mbarrier that nobody initialised"),
        }
    }

    /// Bytes of the parameters.
    pub(super) fn param(&self, a: u64, len: usize, lane: usize) -> Step<[u32; 4]> {
        let at = a.wrapping_sub(PARAM) as usize;
        let Some(b) = at.checked_add(len).and_then(|end| self.launch.params.get(at..end)) else {
            return fault_at(Kind::OutOfBounds, lane, a, format!("{len} bytes outside of the parameters"));
        };
        let mut all = [0; 16];
        all[..len].copy_from_slice(b);
        Ok(crate::shared::words(all))
    }

    fn local_at(&self, thread: usize, a: u64, len: usize, lane: usize) -> Step<usize> {
        let each = u64::from(self.launch.kernel.local_bytes);
        if a.checked_add(len as u64).is_none_or(|end| end > each) {
            return fault_at(
                Kind::OutOfBounds,
                lane,
                a,
                format!("{len} bytes of local memory, of which there are {each}"),
            );
        }
        Ok(thread * each as usize + a as usize)
    }

    fn local_load(&self, thread: usize, a: u64, len: usize, lane: usize) -> Step<[u32; 4]> {
        let at = self.local_at(thread, a, len, lane)?;
        if !self.local_known[at..at + len].iter().all(|&k| k) {
            return fault_at(Kind::Uninitialised, lane, a, "local memory that nobody wrote");
        }
        let mut all = [0; 16];
        all[..len].copy_from_slice(&self.local[at..at + len]);
        Ok(crate::shared::words(all))
    }

    fn local_store(&mut self, thread: usize, a: u64, len: usize, v: [u32; 4], lane: usize) -> Step {
        let at = self.local_at(thread, a, len, lane)?;
        self.local[at..at + len].copy_from_slice(&crate::shared::raw(v)[..len]);
        self.local_known[at..at + len].fill(true);
        Ok(())
    }

    /// Lanes one after the other: in which order is the schedule's.
    pub(super) fn atom(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        (space, ty, op): (Space, Type, Rmw),
        dst: Option<Reg>,
        to: Address,
        (a, b): (Reg, Option<Reg>),
    ) -> Step {
        let mut at = [(0, 0); LANES];
        let n = addresses(warp, ex, to, &mut at);
        let len = ty.bytes() as usize;
        let turn = if self.launch.options.schedule == crate::options::Schedule::Eager {
            0
        } else {
            self.rng.below(n as u64) as usize
        };
        at[..n].rotate_left(turn);
        self.watch.release();
        for &(l, p) in &at[..n] {
            let (space, p) = resolve(space, p);
            aligned(p, len, l)?;
            let (x, y) = (warp.regs.lane(a, l), b.map_or(0, |b| warp.regs.lane(b, l)));
            let f = |old: u64| modify(ty, op, old, x, y);
            let old = match space {
                Space::Global => placed(self.launch.memory.update(p, len, &self.watch, f), l, p)?,
                Space::Shared => {
                    self.ordinary(p, len, l)?;
                    if let Some(s) = &mut self.shadow {
                        s.atomic(warp.id, p as usize, len)?;
                    }
                    let v = placed(self.shared.load(p, len), l, p)?;
                    let old = u64::from(v[0]) | if len == 8 { u64::from(v[1]) << 32 } else { 0 };
                    let new = f(old);
                    placed(self.shared.store(p, len, [new as u32, (new >> 32) as u32, 0, 0]), l, p)?;
                    old
                }
                _ => return fault_at(Kind::OutOfBounds, l, p, "an atomic outside of global and shared memory"),
            };
            if let Some(d) = dst {
                warp.regs.set_lane(d, l, old);
            }
        }
        self.watch.acquire();
        self.count(space, &at[..n], len, true);
        Ok(())
    }

    /// Eight rows of sixteen bytes for each matrix; lanes 8j to 8j+7 say where (9.7.14.5.15).
    pub(super) fn ldmatrix(&mut self, warp: &mut Warp, space: Space, trans: bool, dst: &[Reg], from: Address) -> Step {
        let mut at = [(0, 0); LANES];
        addresses(warp, u32::MAX, from, &mut at);
        let n = dst.len() * 8;
        let mut rows = [[0u16; 8]; LANES];
        let mut row = Row::new(warp, u32::MAX >> (32 - n), from, 16);
        let mut w = [[0; LANES]; 4];
        let whole = row.aligned(16)
            && row.resolve(space) == Some(Space::Shared)
            && self.load_row(warp.id, &row, Space::Shared, 16, (false, false), &mut w);
        if whole {
            for (l, r) in rows.iter_mut().enumerate() {
                *r = std::array::from_fn(|k| (w[k / 2][l] >> (16 * (k % 2))) as u16);
            }
        }
        for &mut (l, ref mut a) in at[..n].iter_mut().filter(|_| !whole) {
            *a = in_shared(space, *a, l)?;
            let a = *a;
            self.ordinary(a, 16, l)?;
            self.shadow_read(warp.id, a, 16, l)?;
            let v = placed(self.shared.load(a, 16), l, a)?;
            rows[l] = std::array::from_fn(|k| (v[k / 2] >> (16 * (k % 2))) as u16);
        }
        for (j, &d) in dst.iter().enumerate() {
            let m = &rows[8 * j..8 * j + 8];
            let row = &mut warp.regs.word[d.row as usize];
            for (l, v) in row.iter_mut().enumerate() {
                let (g, q) = (l / 4, 2 * (l % 4));
                let (lo, hi) = if trans { (m[q][g], m[q + 1][g]) } else { (m[g][q], m[g][q + 1]) };
                *v = u32::from(lo) | u32::from(hi) << 16;
            }
        }
        if whole {
            self.count_row(Space::Shared, &row, 16, false);
        } else {
            self.count(Space::Shared, &at[..n], 16, false);
        }
        Ok(())
    }

    pub(super) fn stmatrix(&mut self, warp: &mut Warp, space: Space, trans: bool, src: &[Reg], to: Address) -> Step {
        let mut at = [(0, 0); LANES];
        addresses(warp, u32::MAX, to, &mut at);
        let n = src.len() * 8;
        for &mut (r, ref mut a) in &mut at[..n] {
            *a = in_shared(space, *a, r)?;
            let a = *a;
            let (j, r8) = (r / 8, r % 8);
            let half = |k: usize| {
                let (row, col) = if trans { (k, r8) } else { (r8, k) };
                (warp.regs.lane(src[j], 4 * row + col / 2) >> (16 * (col % 2))) as u16
            };
            let v = std::array::from_fn(|w| u32::from(half(2 * w)) | u32::from(half(2 * w + 1)) << 16);
            self.ordinary(a, 16, r)?;
            placed(self.shared.store(a, 16, v), r, a)?;
            if let Some(s) = &mut self.shadow {
                s.write(warp.id, a as usize, 16)?;
            }
        }
        self.count(Space::Shared, &at[..n], 16, true);
        Ok(())
    }
}

/// The new value of an atomic.
pub(super) fn modify(ty: Type, op: Rmw, old: u64, x: u64, y: u64) -> u64 {
    let (o32, x32) = (old as u32, x as u32);
    match (op, ty) {
        (Rmw::Add, Type::F32) => (f32::from_bits(o32) + f32::from_bits(x32)).to_bits().into(),
        (Rmw::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        (_, Type::F16 | Type::F16x2) => halves(ty, old, x, |a, b| narrow(op, f16::from_bits(a), f16::from_bits(b))),
        (_, Type::Bf16 | Type::Bf16x2) => halves(ty, old, x, |a, b| narrow(op, bf16::from_bits(a), bf16::from_bits(b))),
        (Rmw::Add, _) => old.wrapping_add(x),
        (Rmw::Min, Type::S32) => (o32 as i32).min(x32 as i32) as u32 as u64,
        (Rmw::Max, Type::S32) => (o32 as i32).max(x32 as i32) as u32 as u64,
        (Rmw::Min, Type::S64) => (old as i64).min(x as i64) as u64,
        (Rmw::Max, Type::S64) => (old as i64).max(x as i64) as u64,
        (Rmw::Min, _) => old.min(x),
        (Rmw::Max, _) => old.max(x),
        (Rmw::And, _) => old & x,
        (Rmw::Or, _) => old | x,
        (Rmw::Xor, _) => old ^ x,
        (Rmw::Inc, _) => {
            if o32 >= x32 {
                0
            } else {
                u64::from(o32) + 1
            }
        }
        (Rmw::Dec, _) => {
            if o32 == 0 || o32 > x32 {
                x32.into()
            } else {
                u64::from(o32) - 1
            }
        }
        (Rmw::Exch, _) => x,
        (Rmw::Cas, _) => {
            if old == x {
                y
            } else {
                old
            }
        }
    }
}

/// An operation on one or two halves of a word.
fn halves(ty: Type, old: u64, x: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    let low = u64::from(f(old as u16, x as u16));
    if ty.bits() == 16 { low } else { low | u64::from(f((old >> 16) as u16, (x >> 16) as u16)) << 16 }
}

fn narrow<T: Narrow + Bits>(op: Rmw, a: T, b: T) -> u16 {
    match op {
        Rmw::Min if a.wide() <= b.wide() => a,
        Rmw::Max if a.wide() >= b.wide() => a,
        Rmw::Min | Rmw::Max => b,
        _ => add_narrow(a, b),
    }
    .bits()
}

trait Bits {
    fn bits(self) -> u16;
}

impl Bits for f16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Bits for bf16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
}
