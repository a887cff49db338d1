//! A warp: its registers, where its lanes stand, and what they wait for.

use super::{BulkStore, Copy, Groups, Launch};
use crate::finding::{Kind, Step, fault};
use crate::program::{Inst, Lanes, Special};
use crate::regs::{File, LANES, Regs};

/// Lanes of a warp that stand at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) rest: Rest,
}

/// Why a part does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It does.
    No,
    /// A `try_wait` failed; its siblings go first.
    Asleep,
    /// It stands at an instruction that all lanes must reach together.
    Parked,
}

/// What a whole warp waits for.
#[derive(Clone, Debug)]
pub(super) enum Wait {
    /// `bar.sync` with this number; for `bar.red` the destination.
    Bar(usize),
    /// An instruction of its warp group.
    Group(u32),
}

#[derive(Default)]
pub(super) struct Warp {
    pub(super) id: usize,
    pub(super) regs: Regs,
    pub(super) parts: Vec<Part>,
    /// Lanes that have exited or never were.
    pub(super) gone: u32,
    pub(super) wait: Option<Wait>,
    /// Where the last turn ended in a failed `try_wait`.
    pub(super) spun: u64,
    /// The mbarrier and the phase that its last turn ended for, where nothing else can wake it.
    pub(super) asleep: Option<(u32, u32)>,
    pub(super) copies: Groups<Copy>,
    pub(super) stores: Groups<BulkStore>,
    /// Products in flight that use a row.
    pub(super) busy: Vec<u32>,
    /// Number of the `wgmma.fence` after which a row was touched last; the count of fences.
    pub(super) touched: Vec<u32>,
    pub(super) fences: u32,
}

impl Warp {
    pub(super) fn start(launch: &Launch, at: [u32; 3], w: usize, threads: u32, spare: Option<Regs>) -> Warp {
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

    pub(super) fn done(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes the part that stands first in the code: so lanes that left a loop or a branch wait for the others at its
    /// end, and go on together.
    pub(super) fn pick(&mut self) -> Option<Part> {
        let n = (0..self.parts.len()).filter(|&n| self.parts[n].rest == Rest::No).min_by_key(|&n| self.parts[n].pc)?;
        Some(self.parts.swap_remove(n))
    }

    /// Lanes of other parts that stand at the same place; they come along.
    pub(super) fn meet(&mut self, pc: u32) -> u32 {
        let mut mask = 0;
        self.parts.retain(|p| {
            mask |= if p.pc == pc { p.mask } else { 0 };
            p.pc != pc
        });
        mask
    }

    /// Registers of a product in flight must not be touched, and those touched need a fence before the next.
    pub(super) fn touch(&mut self, inst: &Inst) -> Step {
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
