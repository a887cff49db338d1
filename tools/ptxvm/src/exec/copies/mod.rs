//! Asynchronous copies (PTX ISA 9.7.9.25): a transfer that is issued, done, and waited for.

mod bulk;
mod tensor;
mod threads;

use super::row::placed;
use super::{Block, Warp};
use crate::finding::{Fault, Kind, Step, fault};
use crate::program::Rmw;
use crate::shared::raw;
use crate::tensor_map::TensorMap;
use crate::types::Type;

/// A bulk copy to be done.
#[derive(Clone)]
pub(in crate::exec) struct Transfer {
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
pub(in crate::exec) fn swizzle(a: u32, bytes: u32) -> u32 {
    let ones = match bytes {
        128 => 7,
        64 => 3,
        32 => 1,
        _ => 0,
    };
    a ^ ((a >> 7 & ones) << 4)
}

fn one_thread(ex: u32) -> Step<usize> {
    if ex.count_ones() != 1 {
        return fault(Kind::Divergence, format!("a bulk copy is issued by {} threads, expected 1", ex.count_ones()));
    }
    Ok(ex.trailing_zeros() as usize)
}

impl Block<'_> {
    /// Does a bulk copy.
    pub(in crate::exec) fn carry_out(&mut self, t: Transfer) -> Step {
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
                let all = t.shared as usize..(t.shared + n) as usize;
                if self.launch.memory.load_span(*g, &mut self.shared.bytes[all], &self.watch).is_err() {
                    // one by one, to the first that is wrong
                    for o in (0..*n).step_by(16) {
                        let a = g + u64::from(o);
                        let v = placed(self.launch.memory.load(a, 16, false, &self.watch), lane, a)?;
                        let s = (t.shared + o) as usize;
                        self.shared.bytes[s..s + 16].copy_from_slice(&raw(v));
                    }
                }
                self.shared.learn(t.shared as usize, *n as usize);
                self.stats.global_read += u64::from(*n);
                self.stats.shared_written += u64::from(*n);
                *n
            }
            Way::Store(g, n) => {
                let all = t.shared as usize..(t.shared + n) as usize;
                if self.launch.memory.store_span(*g, &self.shared.bytes[all], &self.watch).is_err() {
                    for o in (0..*n).step_by(16) {
                        self.put((t.shared + o) as usize, g + u64::from(o), 16, None, lane)?;
                    }
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

    /// What a block must not leave behind.
    pub(in crate::exec) fn copies_left(&self, warp: &Warp) -> Step {
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
