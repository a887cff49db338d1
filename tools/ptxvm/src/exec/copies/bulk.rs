//! Bulk copies: issued by one thread, loads complete on an mbarrier, stores in a group of the thread.

use super::{Transfer, Way, one_thread};
use crate::exec::atomics::modify;
use crate::exec::row::{address, placed};
use crate::exec::{Block, BulkStore, Warp};
use crate::finding::{Kind, Step, fault, fault_at};
use crate::program::{Address, Rmw};
use crate::regs::Reg;
use crate::types::Type;

impl Block<'_> {
    pub(in crate::exec) fn bulk_load(
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

    pub(super) fn issue_load(
        &mut self,
        warp: &Warp,
        lane: usize,
        kind: Way,
        to: u32,
        bytes: u32,
        bar: Address,
    ) -> Step {
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

    pub(in crate::exec) fn bulk_reduce(
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
    pub(super) fn put(&mut self, at: usize, a: u64, len: usize, reduce: Option<(Rmw, Type)>, lane: usize) -> Step {
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

    pub(in crate::exec) fn bulk_store(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        to: Address,
        from: Address,
        bytes: Reg,
    ) -> Step {
        let lane = one_thread(ex)?;
        let (from, to, n) = self.bulk_parts(warp, lane, from, to, bytes)?;
        self.issue_store(warp, Way::Store(to, n), from, n)
    }

    pub(super) fn issue_store(&mut self, warp: &mut Warp, kind: Way, from: u32, bytes: u32) -> Step {
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

    pub(in crate::exec) fn bulk_commit(&mut self, warp: &mut Warp) {
        warp.stores.close();
    }

    /// With `.read` only the reads are waited for; the group stays for a later wait for its writes.
    pub(in crate::exec) fn bulk_wait(&mut self, warp: &mut Warp, newest: usize, read: bool) -> Step {
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
}
