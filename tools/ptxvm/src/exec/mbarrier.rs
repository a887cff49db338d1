//! mbarriers (PTX ISA 9.7.13.15).

use super::row::{address, placed};
use super::{Block, Mbarrier, Warp, lanes_of};
use crate::finding::{Kind, Step, fault_at};
use crate::program::{Address, Mbarrier as Op};

impl Block<'_> {
    /// Whether a wait failed, so that the lanes should sleep.
    pub(super) fn mbarrier(&mut self, warp: &mut Warp, ex: u32, op: Op, at: Address) -> Step<bool> {
        if let Op::Wait(dst, parity, sleeps) = op {
            let late = sleeps && self.times_out();
            let mut yes = 0u32;
            // what all lanes wait for, if it is one phase
            let (mut waits, mut one) = (None, true);
            for l in lanes_of(ex) {
                let a = address(warp, l, at);
                let phase = self.mbarrier_at(a, l)?.phase;
                let passed = phase & 1 != warp.regs.lane(parity, l) as u32 & 1;
                one &= !passed && waits.is_none_or(|w| w == (a as u32, phase));
                waits = Some((a as u32, phase));
                if passed && !late {
                    yes |= 1 << l;
                    if let Some(s) = &mut self.shadow {
                        s.passed(warp.id, a as u32)?;
                    }
                } else if let Some(s) = &mut self.shadow {
                    s.known_barrier(warp.id, a as u32)?;
                }
            }
            warp.asleep = waits.filter(|_| one && sleeps);
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
    pub(super) fn settle(&mut self, at: u32) {
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
}
