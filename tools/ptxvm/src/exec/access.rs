//! Loads and stores of lanes, and what is counted of them.

use super::row::{Row, address_list, aligned, by_lane, collect, deliver, placed, resolve};
use super::{Block, Warp};
use crate::decode::PARAM;
use crate::finding::{Kind, Step, fault_at};
use crate::program::{Address, Strength};
use crate::regs::{LANES, Reg};
use crate::stats::{conflicts, sectors};
use crate::types::{Space, Type};
use crate::watch::Watch;

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
        let n = address_list(warp, ex, from, &mut at);
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
    pub(super) fn load_row(
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
    pub(super) fn watching(&self, quiet: bool) -> &Watch<'_> {
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
        let n = address_list(warp, ex, to, &mut at);
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
    pub(super) fn count_row(&mut self, space: Space, row: &Row, len: usize, store: bool) {
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
    pub(super) fn shadow_read(&mut self, warp: usize, a: u64, len: usize, lane: usize) -> Step {
        let Some(s) = &mut self.shadow else { return Ok(()) };
        let at = placed(self.shared.check(a, len, len), lane, a)?;
        s.read(warp, at, len).map_err(|f| by_lane(f, lane))
    }

    pub(super) fn count(&mut self, space: Space, at: &[(usize, u64)], len: usize, store: bool) {
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

    pub(super) fn local_load(&self, thread: usize, a: u64, len: usize, lane: usize) -> Step<[u32; 4]> {
        let at = self.local_at(thread, a, len, lane)?;
        if !self.local_known[at..at + len].iter().all(|&k| k) {
            return fault_at(Kind::Uninitialised, lane, a, "local memory that nobody wrote");
        }
        let mut all = [0; 16];
        all[..len].copy_from_slice(&self.local[at..at + len]);
        Ok(crate::shared::words(all))
    }

    pub(super) fn local_store(&mut self, thread: usize, a: u64, len: usize, v: [u32; 4], lane: usize) -> Step {
        let at = self.local_at(thread, a, len, lane)?;
        self.local[at..at + len].copy_from_slice(&crate::shared::raw(v)[..len]);
        self.local_known[at..at + len].fill(true);
        Ok(())
    }
}
