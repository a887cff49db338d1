//! `cp.async` of every lane, its groups, and arrivals that wait for it.

use super::{Transfer, Way};
use crate::exec::row::{Row, address, placed};
use crate::exec::{Block, Copy, Warp, lanes_of};
use crate::finding::{Kind, Step, fault, fault_at};
use crate::program::Address;
use crate::regs::{LANES, Reg};
use crate::shared::raw;

impl Block<'_> {
    #[allow(clippy::too_many_arguments)] // a copy has that many parts
    pub(in crate::exec) fn cp_async(
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

    pub(in crate::exec) fn cp_commit(&mut self, warp: &mut Warp) {
        warp.copies.close();
    }

    pub(in crate::exec) fn cp_wait(&mut self, warp: &mut Warp, keep: Option<u32>) -> Step {
        if keep.is_none() {
            warp.copies.close();
        }
        while let Some(group) = warp.copies.next(keep.unwrap_or(0) as usize) {
            self.finish_copies(warp, group)?;
        }
        Ok(())
    }

    pub(in crate::exec) fn finish_copies(&mut self, warp: &Warp, group: Vec<Copy>) -> Step {
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
    pub(in crate::exec) fn cp_arrive(&mut self, warp: &mut Warp, ex: u32, at: Address, noinc: bool) -> Step {
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
    pub(super) fn arrive_copied(&mut self, warp: &mut Warp, t: &Transfer) -> Step {
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
}
