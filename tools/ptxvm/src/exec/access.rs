//! Loads, stores and atomics of lanes, and `ldmatrix`.

use super::{Block, Mbarrier, Warp, lanes_of};
use crate::decode::{LOCAL, PARAM, SHARED, WINDOWS_END};
use crate::finding::{Fault, Kind, Step, fault_at};
use crate::memory::Access;
use crate::program::{Address, Rmw};
use crate::regs::{LANES, Reg};
use crate::stats::{conflicts, sectors};
use crate::types::{Space, Type};

/// Places a fault of memory.
pub(super) fn placed<T>(r: Access<T>, lane: usize, address: u64) -> Step<T> {
    r.map_err(|(kind, message)| Box::new(Fault { kind, lane: Some(lane), address: Some(address), message }))
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
        nc: bool,
    ) -> Step {
        let mut at = [(0, 0); LANES];
        let n = addresses(warp, ex, from, &mut at);
        let (size, len) = (ty.bytes() as usize, ty.bytes() as usize * dst.len());
        for &(l, a) in &at[..n] {
            let (space, a) = resolve(space, a);
            aligned(a, len, l)?;
            let v = match space {
                Space::Global => placed(self.launch.memory.load(a, len, nc), l, a)?,
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

    pub(super) fn store(&mut self, warp: &mut Warp, ex: u32, space: Space, ty: Type, src: &[Reg], to: Address) -> Step {
        let mut at = [(0, 0); LANES];
        let n = addresses(warp, ex, to, &mut at);
        let (size, len) = (ty.bytes() as usize, ty.bytes() as usize * src.len());
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
                Space::Global => placed(self.launch.memory.store(a, len, v, self.launch.track), l, a)?,
                Space::Shared => {
                    self.ordinary(a, len, l)?;
                    placed(self.shared.store(a, len, v), l, a)?;
                    if let Some(s) = &mut self.shadow {
                        s.write(warp.id, a as usize, len)?;
                    }
                }
                Space::Param => return fault_at(Kind::OutOfBounds, l, a, "a store to a kernel's parameters"),
                _ => self.local_store(warp.id * 32 + l, a, len, v, l)?,
            }
        }
        self.count(space, &at[..n], len, true);
        Ok(())
    }

    /// Order comes before content: what is still to be copied is a race, whether it is there already or not.
    #[inline(always)]
    fn shadow_read(&mut self, warp: usize, a: u64, len: usize, lane: usize) -> Step {
        let Some(s) = &mut self.shadow else { return Ok(()) };
        let at = placed(self.shared.check(a, len, len), lane, a)?;
        s.read(warp, at, len).map_err(|mut f| {
            f.lane.get_or_insert(lane);
            f
        })
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
        if a >= u64::from(self.mbar_span.1) || a + (len as u64) <= u64::from(self.mbar_span.0) {
            return Ok(());
        }
        self.near_mbarrier(a, len, lane)
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
        for &(l, p) in &at[..n] {
            let (space, p) = resolve(space, p);
            aligned(p, len, l)?;
            let (x, y) = (warp.regs.lane(a, l), b.map_or(0, |b| warp.regs.lane(b, l)));
            let f = |old: u64| modify(ty, op, old, x, y);
            let old = match space {
                Space::Global => placed(self.launch.memory.update(p, len, self.launch.track, f), l, p)?,
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
        self.count(space, &at[..n], len, true);
        Ok(())
    }

    /// Eight rows of sixteen bytes for each matrix; lanes 8j to 8j+7 say where (9.7.14.5.15).
    pub(super) fn ldmatrix(&mut self, warp: &mut Warp, trans: bool, dst: &[Reg], from: Address) -> Step {
        let mut at = [(0, 0); LANES];
        addresses(warp, u32::MAX, from, &mut at);
        let n = dst.len() * 8;
        let mut rows = [[0u16; 8]; LANES];
        for &(l, a) in &at[..n] {
            let (_, a) = resolve(Space::Shared, a);
            self.ordinary(a, 16, l)?;
            self.shadow_read(warp.id, a, 16, l)?;
            let v = placed(self.shared.load(a, 16), l, a)?;
            rows[l] = std::array::from_fn(|k| (v[k / 2] >> (16 * (k % 2))) as u16);
        }
        for (j, &d) in dst.iter().enumerate() {
            let m = &rows[8 * j..8 * j + 8];
            for l in 0..LANES {
                let (g, q) = (l / 4, 2 * (l % 4));
                let (lo, hi) = if trans { (m[q][g], m[q + 1][g]) } else { (m[g][q], m[g][q + 1]) };
                warp.regs.set_lane(d, l, u64::from(lo) | u64::from(hi) << 16);
            }
        }
        self.count(Space::Shared, &at[..n], 16, false);
        Ok(())
    }

    pub(super) fn stmatrix(&mut self, warp: &mut Warp, trans: bool, src: &[Reg], to: Address) -> Step {
        let mut at = [(0, 0); LANES];
        addresses(warp, u32::MAX, to, &mut at);
        let n = src.len() * 8;
        for &(r, a) in &at[..n] {
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
fn modify(ty: Type, op: Rmw, old: u64, x: u64, y: u64) -> u64 {
    let (o32, x32) = (old as u32, x as u32);
    match (op, ty) {
        (Rmw::Add, Type::F32) => (f32::from_bits(o32) + f32::from_bits(x32)).to_bits().into(),
        (Rmw::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
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
