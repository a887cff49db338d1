//! Asynchronous copies and mbarriers (PTX ISA 9.7.9.25 and 9.7.13.15).

use super::access::{Row, address, modify, placed};
use super::{Block, BulkStore, Copy, Mbarrier, Warp, lanes_of};
use crate::decode::PARAM;
use crate::finding::{Fault, Kind, Step, fault, fault_at};
use crate::program::{Address, Mbarrier as Op, Rmw};
use crate::regs::{LANES, Reg};
use crate::shared::raw;
use crate::tensor_map::TensorMap;
use crate::types::Type;

/// A bulk copy to be done.
#[derive(Clone)]
pub(super) struct Transfer {
    kind: Way,
    /// Address in shared memory.
    shared: u32,
    /// Where completed bytes are counted, and the time of the write for the shadow.
    bar: Option<(u32, Option<(usize, u32)>)>,
    /// Place of the instruction, for findings.
    place: (usize, u32, u32),
}

#[derive(Clone)]
enum Way {
    TensorLoad(TensorMap, Vec<i32>),
    TensorStore(TensorMap, Vec<i32>, Option<(Rmw, Type)>),
    Load(u64, u32),
    Store(u64, u32),
    Reduce(u64, u32, Rmw, Type),
    /// Arrivals at an mbarrier of these threads of a warp, when their copies are done.
    Arrive(usize, Vec<u32>),
}

/// Address bits 4 to 6 are mixed with those above, as far as the pattern goes.
pub(super) fn swizzle(a: u32, bytes: u32) -> u32 {
    let ones = match bytes {
        128 => 7,
        64 => 3,
        32 => 1,
        _ => 0,
    };
    a ^ ((a >> 7 & ones) << 4)
}

fn no_type(m: &TensorMap) -> Box<Fault> {
    Box::new(Fault {
        kind: Kind::Descriptor,
        lane: None,
        address: None,
        message: format!("a reduction by a map that does not say what its elements of {} bytes are", m.elem),
    })
}

fn one_thread(ex: u32) -> Step<usize> {
    if ex.count_ones() != 1 {
        return fault(Kind::Divergence, format!("a bulk copy is issued by {} threads, expected 1", ex.count_ones()));
    }
    Ok(ex.trailing_zeros() as usize)
}

impl Block<'_> {
    #[allow(clippy::too_many_arguments)] // a copy has that many parts
    pub(super) fn cp_async(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        bytes: u32,
        to: Address,
        from: Address,
        size: Option<Reg>,
        line: u32,
    ) -> Step {
        let now = self.eager();
        let (to, from) = (Row::new(warp, ex, to, bytes as usize), Row::new(warp, ex, from, bytes as usize));
        let size = size.map_or([bytes; LANES], |s| warp.regs.word[s.row as usize]);
        let aligned = to.aligned(bytes as usize) && from.aligned(bytes as usize);
        let time = if aligned && size.iter().all(|&s| s <= bytes) && self.copy_row(warp.id, &to) {
            self.shadow.as_ref().map_or(0, |s| s.copy_time(warp.id))
        } else {
            let mut time = 0;
            for lane in lanes_of(ex) {
                let (to, from, size) = (to.at[lane], from.at[lane], size[lane]);
                if size > bytes {
                    let message = format!("a source of {size} bytes for a copy of {bytes}");
                    return fault_at(Kind::OutOfBounds, lane, from, message);
                }
                self.ordinary(to, bytes as usize, lane)?;
                let at = placed(self.shared.check(to, bytes as usize, bytes as usize), lane, to)?;
                if from % u64::from(bytes) != 0 && size > 0 {
                    return fault_at(Kind::Misaligned, lane, from, format!("a copy of {bytes} bytes"));
                }
                if let Some(s) = &mut self.shadow {
                    time = s.copy(warp.id, at, bytes as usize)?;
                }
            }
            time
        };
        let (to, from) = (to.at, from.at);
        let mut c = Copy { mask: ex, to, from, bytes, size, done: false, time, line, counted: 0 };
        if now {
            self.do_copy(&mut c)?;
        }
        warp.copies.open.push(c);
        if let Some(s) = &mut self.shadow {
            s.copied(warp.id);
        }
        Ok(())
    }

    /// All destinations of a copy at once; false where lanes must go one by one.
    fn copy_row(&mut self, warp: usize, to: &Row) -> bool {
        for &(from, end) in to.runs() {
            let bytes = end.wrapping_sub(from) as usize;
            let Ok(at) = self.shared.check(from, bytes, 1) else { return false };
            if self.near_mbarriers(from, bytes) || self.shadow.as_ref().is_some_and(|s| !s.may_copy(warp, at, bytes)) {
                return false;
            }
        }
        if let Some(s) = &mut self.shadow {
            to.runs().iter().for_each(|r| s.copied_to(warp, r.0 as usize, (r.1 - r.0) as usize));
        }
        true
    }

    /// Source bytes, then zeros.
    fn do_copy(&mut self, c: &mut Copy) -> Step {
        let (bytes, n) = (c.bytes as usize, u64::from(c.mask.count_ones()));
        c.done = true;
        self.stats.shared_written += n * u64::from(c.bytes);
        self.stats.global_read += lanes_of(c.mask).map(|l| u64::from(c.size[l])).sum::<u64>();
        if lanes_of(c.mask).all(|l| c.size[l] == c.bytes) {
            let from = Row::of(c.from, c.mask, bytes);
            let mut w = [[0; LANES]; 4];
            if self.launch.memory.gather(&from.at, from.runs(), bytes, false, &self.watch, &mut w) {
                self.shared.scatter((&c.to, c.mask), bytes, &w);
                let to = Row::of(c.to, c.mask, bytes);
                to.runs().iter().for_each(|r| self.shared.learn(r.0 as usize, (r.1 - r.0) as usize));
                return Ok(());
            }
        }
        for lane in lanes_of(c.mask) {
            let mut all = [0u8; 16];
            let size = c.size[lane];
            let unit = if size == c.bytes {
                c.bytes
            } else if size.is_multiple_of(4) {
                4
            } else {
                1
            };
            for n in (0..size).step_by(unit as usize) {
                let a = c.from[lane] + u64::from(n);
                let v = placed(self.launch.memory.load(a, unit as usize, false, &self.watch), lane, a)?;
                all[n as usize..(n + unit) as usize].copy_from_slice(&raw(v)[..unit as usize]);
            }
            let at = c.to[lane] as usize;
            self.shared.bytes[at..at + bytes].copy_from_slice(&all[..bytes]);
            self.shared.learn(at, bytes);
        }
        Ok(())
    }

    pub(super) fn cp_commit(&mut self, warp: &mut Warp) {
        warp.copies.close();
    }

    pub(super) fn cp_wait(&mut self, warp: &mut Warp, keep: Option<u32>) -> Step {
        if keep.is_none() {
            warp.copies.close();
        }
        while let Some(group) = warp.copies.next(keep.unwrap_or(0) as usize) {
            self.finish_copies(warp, group)?;
        }
        Ok(())
    }

    pub(super) fn finish_copies(&mut self, warp: &Warp, group: Vec<Copy>) -> Step {
        let mut last = 0;
        for mut c in group {
            last = last.max(c.time);
            if !c.done {
                self.do_copy(&mut c).map_err(|mut f| {
                    f.message = format!("{} (copied by line {})", f.message, c.line);
                    f
                })?;
            }
        }
        if let Some(s) = &mut self.shadow
            && last > 0
        {
            s.copies_done(warp.id, last);
        }
        Ok(())
    }

    /// Threads arrive at mbarriers when the copies they have issued are done.
    pub(super) fn cp_arrive(&mut self, warp: &mut Warp, ex: u32, at: Address, noinc: bool) -> Step {
        for c in warp.copies.open.iter_mut().chain(warp.copies.closed.iter_mut().flatten()) {
            c.counted |= ex;
        }
        let mut bars = Vec::new();
        for l in lanes_of(ex) {
            let a = address(warp, l, at);
            let b = self.mbarrier_at(a, l)?;
            if !noinc {
                b.pending += 1;
            }
            bars.push(a as u32);
        }
        if let Some(s) = &mut self.shadow {
            bars.iter().try_for_each(|&b| s.known_barrier(warp.id, b))?;
        }
        let t = Transfer { kind: Way::Arrive(warp.id, bars), shared: 0, bar: None, place: self.place };
        if self.eager() {
            return self.arrive_copied(warp, &t);
        }
        self.pending.push(t);
        Ok(())
    }

    /// The arrivals of [`Block::cp_arrive`], after the copies before them.
    fn arrive_copied(&mut self, warp: &mut Warp, t: &Transfer) -> Step {
        let Way::Arrive(_, bars) = &t.kind else { return Ok(()) };
        let mut copies = std::mem::take(&mut warp.copies);
        let mut last = 0;
        for c in copies.open.iter_mut().chain(copies.closed.iter_mut().flatten()).filter(|c| c.counted != 0) {
            last = last.max(c.time);
            if !c.done {
                self.do_copy(c)?;
            }
        }
        warp.copies = copies;
        for &at in bars {
            if let Some(s) = &mut self.shadow {
                s.copies_counted(warp.id, last, at)?;
            }
            let b = self.mbarrier_at(at.into(), t.place.2.trailing_zeros() as usize)?;
            b.pending -= 1;
            if b.pending < 0 {
                return fault(Kind::Mbarrier, format!("more arrivals than the {} it expects", b.expected));
            }
            self.settle(at);
            self.events += 1;
        }
        Ok(())
    }

    // ---- mbarriers ----

    /// Whether a wait failed, so that the lanes should sleep.
    pub(super) fn mbarrier(&mut self, warp: &mut Warp, ex: u32, op: Op, at: Address) -> Step<bool> {
        if let Op::Wait(dst, parity, sleeps) = op {
            let late = sleeps && self.times_out();
            let mut yes = 0u32;
            for l in lanes_of(ex) {
                let a = address(warp, l, at);
                let passed = self.mbarrier_at(a, l)?.phase & 1 != warp.regs.lane(parity, l) as u32 & 1;
                if passed && !late {
                    yes |= 1 << l;
                    if let Some(s) = &mut self.shadow {
                        s.passed(warp.id, a as u32)?;
                    }
                } else if let Some(s) = &mut self.shadow {
                    s.known_barrier(warp.id, a as u32)?;
                }
            }
            let f = &mut warp.regs.flag[dst.row as usize];
            *f = *f & !ex | yes;
            // lanes that passed must not wait for those that did not, nor the others run ahead of them for ever
            return Ok(yes == 0);
        }
        for l in lanes_of(ex) {
            let a = address(warp, l, at);
            match op {
                Op::Init(count) => {
                    let place = placed(self.shared.check(a, 8, 8), l, a)? as u32;
                    let n = i64::from(warp.regs.lane(count, l) as u32);
                    if !(1..1 << 20).contains(&n) {
                        return fault_at(Kind::Mbarrier, l, a, format!("a count of {n}, expected 1 to 1,048,575"));
                    }
                    if self.mbars.contains_key(&place) {
                        return fault_at(Kind::Mbarrier, l, a, "an mbarrier initialised while it is live");
                    }
                    self.mbars.insert(place, Mbarrier { expected: n, pending: n, bytes: 0, phase: 0 });
                    self.mbar_span = (self.mbar_span.0.min(place), self.mbar_span.1.max(place + 8));
                    if let Some(s) = &mut self.shadow {
                        s.init(warp.id, place);
                    }
                }
                Op::Invalidate => {
                    self.mbarrier_at(a, l)?;
                    self.mbars.remove(&(a as u32));
                }
                Op::Arrive(count, bytes) => {
                    let n = count.map_or(1, |c| i64::from(warp.regs.lane(c, l) as u32));
                    let tx = bytes.map_or(0, |c| i64::from(warp.regs.lane(c, l) as u32));
                    let b = self.mbarrier_at(a, l)?;
                    b.bytes += tx;
                    b.pending -= n;
                    if b.pending < 0 {
                        return fault_at(
                            Kind::Mbarrier,
                            l,
                            a,
                            format!("more arrivals than the {} it expects", b.expected),
                        );
                    }
                    if b.bytes.abs() >= 1 << 20 {
                        return fault_at(Kind::Mbarrier, l, a, format!("{} bytes awaited, beyond 2^20 - 1", b.bytes));
                    }
                    if let Some(s) = &mut self.shadow {
                        s.arrive(warp.id, a as u32)?;
                    }
                    self.settle(a as u32);
                }
                Op::ExpectTx(bytes) => {
                    let n = i64::from(warp.regs.lane(bytes, l) as u32);
                    self.mbarrier_at(a, l)?.bytes += n;
                    if let Some(s) = &mut self.shadow {
                        s.known_barrier(warp.id, a as u32)?;
                    }
                }
                Op::Wait(..) => {}
            }
            self.events += 1;
        }
        Ok(false)
    }

    /// The phase completes when nothing is awaited any more.
    fn settle(&mut self, at: u32) {
        if let Some(b) = self.mbars.get_mut(&at)
            && b.pending == 0
            && b.bytes == 0
        {
            b.pending = b.expected;
            b.phase = b.phase.wrapping_add(1);
            self.events += 1;
            if let Some(s) = &mut self.shadow {
                s.phase(at);
            }
        }
    }

    // ---- bulk copies ----

    /// The tensor map that a lane's address names.
    pub(super) fn tensor_map(&self, warp: &Warp, lane: usize, a: Address) -> Step<TensorMap> {
        let a = address(warp, lane, a);
        let words = if a >= PARAM {
            let v = self.param(a, 16, lane)?;
            v.map(u64::from)
        } else {
            placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?.map(u64::from)
        };
        if !a.is_multiple_of(64) {
            return fault_at(Kind::Misaligned, lane, a, "a tensor map must be aligned to 64 bytes");
        }
        match self.launch.memory.map([words[0] | words[1] << 32, words[2] | words[3] << 32]) {
            Some(m) => Ok(m.clone()),
            None => fault_at(Kind::Descriptor, lane, a, "what lies there is no tensor map"),
        }
    }

    /// The map, the coordinates, and the place in shared memory.
    fn tensor_parts(
        &self,
        warp: &Warp,
        lane: usize,
        shared: Address,
        map: Address,
        at: &[Reg],
    ) -> Step<(TensorMap, Vec<i32>, u32)> {
        let m = self.tensor_map(warp, lane, map)?;
        if m.dims.len() != at.len() {
            return fault(
                Kind::Descriptor,
                format!("{} coordinates for a map of {} dimensions", at.len(), m.dims.len()),
            );
        }
        let c = at.iter().map(|&r| warp.regs.lane(r, lane) as i32).collect();
        let a = address(warp, lane, shared);
        let a = placed(self.shared.check(a, m.box_bytes() as usize, 128), lane, a)?;
        Ok((m, c, a as u32))
    }

    pub(super) fn tensor_load(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        to: Address,
        map: Address,
        at: &[Reg],
        bar: Address,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (m, c, to) = self.tensor_parts(warp, lane, to, map, at)?;
        let bytes = m.box_bytes();
        self.issue_load(warp, lane, Way::TensorLoad(m, c), to, bytes, bar)
    }

    pub(super) fn bulk_load(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        to: Address,
        from: Address,
        bytes: Reg,
        bar: Address,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (to, from, n) = self.bulk_parts(warp, lane, to, from, bytes)?;
        self.issue_load(warp, lane, Way::Load(from, n), to, n, bar)
    }

    /// Shared address, global address and bytes: all multiples of 16.
    fn bulk_parts(
        &self,
        warp: &Warp,
        lane: usize,
        shared: Address,
        global: Address,
        bytes: Reg,
    ) -> Step<(u32, u64, u32)> {
        let (s, g, n) = (address(warp, lane, shared), address(warp, lane, global), warp.regs.lane(bytes, lane) as u32);
        if g % 16 != 0 || n % 16 != 0 {
            return fault_at(
                Kind::Misaligned,
                lane,
                g,
                format!("a bulk copy of {n} bytes: addresses and size must be multiples of 16"),
            );
        }
        let s = placed(self.shared.check(s, n as usize, 16), lane, s)?;
        Ok((s as u32, g, n))
    }

    fn issue_load(&mut self, warp: &Warp, lane: usize, kind: Way, to: u32, bytes: u32, bar: Address) -> Step {
        let bar = address(warp, lane, bar);
        self.mbarrier_at(bar, lane)?;
        self.ordinary(to.into(), bytes as usize, lane)?;
        let bar = bar as u32;
        let time = match &mut self.shadow {
            Some(s) => Some(s.bulk_load(warp.id, to as usize, bytes as usize, bar)?),
            None => None,
        };
        let t = Transfer { kind, shared: to, bar: Some((bar, time)), place: self.place };
        if self.eager() {
            return self.carry_out(t);
        }
        self.pending.push(t);
        Ok(())
    }

    pub(super) fn tensor_store(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        from: Address,
        map: Address,
        at: &[Reg],
        reduce: Option<Rmw>,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (m, c, from) = self.tensor_parts(warp, lane, from, map, at)?;
        let reduce = match (reduce, m.kind) {
            (None, _) => None,
            (Some(op @ (Rmw::And | Rmw::Or | Rmw::Xor)), _) if m.elem >= 4 => Some((op, Type::B32)),
            (Some(op), Some(kind)) => Some((op, kind.of(m.elem).ok_or_else(|| no_type(&m))?)),
            (Some(_), None) => return Err(no_type(&m)),
        };
        let bytes = m.box_bytes();
        self.issue_store(warp, Way::TensorStore(m, c, reduce), from, bytes)
    }

    pub(super) fn bulk_reduce(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        (op, ty): (Rmw, Type),
        to: Address,
        from: Address,
        bytes: Reg,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (from, to, n) = self.bulk_parts(warp, lane, from, to, bytes)?;
        self.issue_store(warp, Way::Reduce(to, n, op, ty), from, n)
    }

    /// Bytes of shared memory go into global memory: as they are, or each element combined with what is there.
    fn put(&mut self, at: usize, a: u64, len: usize, reduce: Option<(Rmw, Type)>, lane: usize) -> Step {
        let mut b = [0; 16];
        b[..len].copy_from_slice(&self.shared.bytes[at..at + len]);
        let memory = self.launch.memory;
        let Some((op, ty)) = reduce else {
            return placed(memory.store(a, len, crate::shared::words(b), &self.watch), lane, a);
        };
        let each = ty.bytes() as usize;
        for n in (0..len).step_by(each) {
            let mut x = [0; 8];
            x[..each].copy_from_slice(&b[n..n + each]);
            let (a, x) = (a + n as u64, u64::from_le_bytes(x));
            placed(memory.update(a, each, &self.watch, |old| modify(ty, op, old, x, 0)), lane, a)?;
        }
        Ok(())
    }

    pub(super) fn bulk_store(&mut self, warp: &mut Warp, ex: u32, to: Address, from: Address, bytes: Reg) -> Step {
        let lane = one_thread(ex)?;
        let (from, to, n) = self.bulk_parts(warp, lane, from, to, bytes)?;
        self.issue_store(warp, Way::Store(to, n), from, n)
    }

    fn issue_store(&mut self, warp: &mut Warp, kind: Way, from: u32, bytes: u32) -> Step {
        let (at, len) = (from as usize, bytes as usize);
        if !self.shared.knows(at, len) {
            return fault(Kind::Uninitialised, "a bulk store of shared memory that nobody wrote");
        }
        let words = at / 4..(at + len) / 4;
        if let Some(s) = &mut self.shadow {
            s.hold(warp.id..warp.id + 1, std::iter::once(words.clone()), "a bulk store")?;
        }
        let t = Transfer { kind, shared: from, bar: None, place: self.place };
        let work = if self.eager() {
            self.carry_out(t)?;
            None
        } else {
            Some(t)
        };
        warp.stores.open.push(BulkStore { work, words, held: true });
        Ok(())
    }

    pub(super) fn bulk_commit(&mut self, warp: &mut Warp) {
        warp.stores.close();
    }

    /// With `.read` only the reads are waited for; the group stays for a later wait for its writes.
    pub(super) fn bulk_wait(&mut self, warp: &mut Warp, newest: usize, read: bool) -> Step {
        let n = warp.stores.closed.len().saturating_sub(newest);
        for g in warp.stores.closed.iter_mut().take(n) {
            for s in g {
                if let Some(t) = s.work.take() {
                    self.carry_out(t)?;
                }
                if std::mem::take(&mut s.held)
                    && let Some(shadow) = &mut self.shadow
                {
                    shadow.let_go(warp.id..warp.id + 1, std::iter::once(s.words.clone()));
                }
            }
        }
        if !read {
            warp.stores.closed.drain(..n);
        }
        Ok(())
    }

    /// Does a bulk copy.
    pub(super) fn carry_out(&mut self, t: Transfer) -> Step {
        let (here, lane) = (self.place, t.place.2.trailing_zeros() as usize);
        // a finding is the fault of who issued the copy
        self.place = t.place;
        let bytes = match &t.kind {
            Way::TensorLoad(m, c) => self.tensor_box(m, c, t.shared, (false, None), lane)?,
            Way::TensorStore(m, c, reduce) => self.tensor_box(m, c, t.shared, (true, *reduce), lane)?,
            Way::Arrive(w, _) => {
                let mut warp = std::mem::take(&mut self.warps[*w]);
                let done = self.arrive_copied(&mut warp, &t);
                self.warps[*w] = warp;
                done?;
                0
            }
            Way::Reduce(g, n, op, ty) => {
                for o in (0..*n).step_by(16) {
                    self.put((t.shared + o) as usize, g + u64::from(o), 16, Some((*op, *ty)), lane)?;
                }
                self.stats.global_written += u64::from(*n);
                self.stats.shared_read += u64::from(*n);
                *n
            }
            Way::Load(g, n) => {
                for o in (0..*n).step_by(16) {
                    let a = g + u64::from(o);
                    let v = placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?;
                    let s = (t.shared + o) as usize;
                    self.shared.bytes[s..s + 16].copy_from_slice(&raw(v));
                }
                self.shared.learn(t.shared as usize, *n as usize);
                self.stats.global_read += u64::from(*n);
                self.stats.shared_written += u64::from(*n);
                *n
            }
            Way::Store(g, n) => {
                for o in (0..*n).step_by(16) {
                    self.put((t.shared + o) as usize, g + u64::from(o), 16, None, lane)?;
                }
                self.stats.global_written += u64::from(*n);
                self.stats.shared_read += u64::from(*n);
                *n
            }
        };
        self.place = here;
        if let Some((bar, time)) = t.bar {
            if let (Some(s), Some(time)) = (&mut self.shadow, time) {
                s.bulk_loaded(bar, time);
            }
            let Some(b) = self.mbars.get_mut(&bar) else {
                return fault(Kind::Mbarrier, "a bulk copy completes on an mbarrier that is gone");
            };
            b.bytes -= i64::from(bytes);
            if b.bytes <= -(1 << 20) {
                return fault(Kind::Mbarrier, "more bytes complete than an mbarrier can count");
            }
            self.settle(bar);
        }
        Ok(())
    }

    /// Copies a box, dense in shared memory but for the swizzle. Elements outside of the tensor are zeros when loaded,
    /// and left alone when stored.
    fn tensor_box(
        &mut self,
        m: &TensorMap,
        c: &[i32],
        shared: u32,
        (store, reduce): (bool, Option<(Rmw, Type)>),
        lane: usize,
    ) -> Step<u32> {
        let rank = m.dims.len();
        let counts: Vec<u32> = (0..rank).map(|d| m.loaded(d)).collect();
        let (elem, row_bytes) = (m.elem, counts[0] * m.elem);
        let rows: u32 = counts[1..].iter().product();
        let mut place = vec![0u32; rank];
        let mut moved = 0u64;
        for r in 0..rows {
            let mut rest = r;
            for d in 1..rank {
                place[d] = rest % counts[d];
                rest /= counts[d];
            }
            let mut from = m.base;
            let mut inside = true;
            for d in 1..rank {
                let p = i64::from(c[d]) + i64::from(place[d]) * i64::from(m.steps[d]);
                inside &= p >= 0 && (p as u64) < m.dims[d];
                from = from.wrapping_add((p as u64).wrapping_mul(m.strides[d - 1]));
            }
            for chunk in (0..row_bytes).step_by(16) {
                let at = swizzle(shared + r * row_bytes + chunk, m.swizzle) as usize;
                let first = i64::from(c[0]) + i64::from(chunk / elem) * i64::from(m.steps[0]);
                let n = 16 / elem;
                let whole = inside && m.steps[0] == 1 && first >= 0 && first as u64 + u64::from(n) <= m.dims[0];
                let a = from.wrapping_add((first as u64).wrapping_mul(elem.into()));
                if whole && a % 16 == 0 {
                    if store {
                        self.put(at, a, 16, reduce, lane)?;
                    } else {
                        let v = placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?;
                        self.shared.bytes[at..at + 16].copy_from_slice(&raw(v));
                    }
                    moved += 16;
                    continue;
                }
                for e in 0..n {
                    let p = first + i64::from(e) * i64::from(m.steps[0]);
                    let (s, len) = (at + (e * elem) as usize, elem as usize);
                    let ok = inside && p >= 0 && (p as u64) < m.dims[0];
                    let a = from.wrapping_add((p as u64).wrapping_mul(elem.into()));
                    if !ok {
                        if !store {
                            self.shared.bytes[s..s + len].fill(0);
                        }
                    } else if store {
                        self.put(s, a, len, reduce, lane)?;
                        moved += len as u64;
                    } else {
                        let v = placed(self.launch.memory.load(a, len, false, &self.watch), lane, a)?;
                        self.shared.bytes[s..s + len].copy_from_slice(&raw(v)[..len]);
                        moved += len as u64;
                    }
                }
            }
        }
        let bytes = rows * row_bytes;
        if store {
            self.stats.global_written += moved;
            self.stats.shared_read += u64::from(bytes);
        } else {
            self.shared.learn(shared as usize, bytes as usize);
            self.stats.global_read += moved;
            self.stats.shared_written += u64::from(bytes);
        }
        Ok(bytes)
    }

    /// What a block must not leave behind.
    pub(super) fn copies_left(&self, warp: &Warp) -> Step {
        let left = |what: &str| {
            Err(Box::new(Fault {
                kind: Kind::NotWaited,
                lane: None,
                address: None,
                message: format!("warp {} ends with {what}", warp.id),
            }))
        };
        if warp.copies.open.iter().any(|c| c.mask & !c.counted != 0) {
            return left("cp.async that was never committed");
        }
        if !warp.stores.open.is_empty() {
            return left("a bulk store that was never committed");
        }
        if self.shadow.is_some() && warp.stores.closed.iter().flatten().any(|s| s.held) {
            return left("a bulk store that still reads shared memory");
        }
        let products = self.products.get(warp.id / 4);
        if products.is_some_and(|p| !p.open.is_empty() || !p.closed.is_empty()) {
            return left("wgmma that was not waited for");
        }
        Ok(())
    }
}
