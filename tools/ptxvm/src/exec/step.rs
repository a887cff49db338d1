//! The loop that runs a warp until it must wait, instruction by instruction.

use super::warp::{Part, Rest, Wait, Warp};
use super::{Block, CLUSTER, End, lanes, lanes_of, matrix};
use crate::finding::{Kind, Step, fault, fault_at};
use crate::options::Schedule;
use crate::program::{Exec, Fence, Inst};
use crate::regs::{File, Reg, Regs};

impl Block<'_> {
    /// Runs a warp until it must wait, spins or ends.
    pub(super) fn turn(&mut self, w: usize) -> Step<End> {
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
                if warp.parts.len() > 1 {
                    warp.asleep = None;
                }
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
    pub(super) fn where_is(&self, pc: u32) -> String {
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
