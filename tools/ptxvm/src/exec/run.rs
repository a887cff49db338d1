//! The order in which warps of a block run, barriers of the block, and how a block ends or hangs.

use super::warp::{Wait, Warp};
use super::{Bar, Block, End};
use crate::finding::{Fault, Kind, Step, fault};
use crate::options::Schedule;
use crate::program::Vote;
use crate::regs::{LANES, Reg};

impl Block<'_> {
    /// Runs the block to its end.
    pub fn run(&mut self) -> Step {
        let schedule = self.launch.options.schedule;
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        if schedule == Schedule::Descending {
            order.reverse();
        }
        // a wait may time out several times in a row before it is known to be for ever
        let patience = if matches!(schedule, Schedule::Lazy | Schedule::Random(_)) { 60 } else { 4 };
        let mut idle = 0;
        while self.warps.iter().any(|w| !w.done()) {
            if let Schedule::Random(_) = schedule {
                for n in (1..order.len()).rev() {
                    order.swap(n, self.rng.below(n as u64 + 1) as usize);
                }
                if !self.pending.is_empty() && self.rng.below(4) == 0 {
                    let n = self.rng.below(self.pending.len() as u64) as usize;
                    let t = self.pending.swap_remove(n);
                    self.carry_out(t)?;
                }
            }
            let (before, mut progress) = (self.events, false);
            for &w in &order {
                progress |= self.go(w, idle > 0)?;
                if self.stats.instructions > self.launch.options.limit {
                    return fault(
                        Kind::Endless,
                        format!("more than {} instructions in one block", self.launch.options.limit),
                    );
                }
            }
            if progress || self.events != before {
                idle = 0;
                continue;
            }
            idle += 1;
            let asleep = (0..self.warps.len()).all(|w| self.warps[w].wait.is_some() || self.sleeps(w));
            if (asleep || idle > patience / 8 + 1) && !self.pending.is_empty() {
                // the latest moment: every warp waits
                for t in std::mem::take(&mut self.pending) {
                    self.carry_out(t)?;
                }
                idle = 0;
            }
            if idle > patience {
                return self.hang();
            }
        }
        self.finish()
    }

    /// Whether a warp has ended or waits for a phase of an mbarrier that is still to come.
    fn sleeps(&self, w: usize) -> bool {
        let at = |(bar, phase)| self.mbars.get(&bar).is_some_and(|b| b.phase == phase);
        self.warps[w].done() || self.warps[w].asleep.is_some_and(at)
    }

    /// One turn of a warp; whether anything happened. One that sleeps has none, unless it is to look whether it should.
    fn go(&mut self, w: usize, look: bool) -> Step<bool> {
        let mut progress = false;
        loop {
            match self.warps[w].wait {
                Some(Wait::Bar(_)) => return Ok(progress),
                // others may have given registers back
                Some(Wait::Group(_)) => {
                    if !self.group(w)? {
                        return Ok(progress);
                    }
                    progress = true;
                }
                None if self.warps[w].done() || !look && self.sleeps(w) => return Ok(progress),
                None => self.warps[w].asleep = None,
            }
            match self.turn(w)? {
                End::Done | End::Waits | End::Enough => return Ok(true),
                End::Spins(place, n) => {
                    // a short turn that ends where the last one did is a spin
                    let moved = n > 512 || place != self.warps[w].spun;
                    self.warps[w].spun = place;
                    return Ok(progress | moved);
                }
                End::Group => progress = true,
            }
        }
    }

    /// `bar.sync`, `bar.arrive` and `bar.red` of a warp; whether it must wait.
    #[allow(clippy::type_complexity)] // as the instruction has it
    pub(super) fn bar(
        &mut self,
        warp: &mut Warp,
        ex: u32,
        id: usize,
        threads: Option<Reg>,
        arrive: bool,
        red: Option<(Vote, Reg, Reg, bool)>,
    ) -> Step<bool> {
        let lane = ex.trailing_zeros() as usize;
        let all = self.warps.len() as u32;
        let need = match threads {
            None => all,
            Some(r) => {
                let n = warp.regs.lane(r, lane) as u32;
                if n == 0 || !n.is_multiple_of(32) || n / 32 > all {
                    return fault(
                        Kind::Barrier,
                        format!("barrier {id} of {n} threads, expected a multiple of 32 up to {}", all * 32),
                    );
                }
                n / 32
            }
        };
        let b = &mut self.bars[id];
        if b.warps.is_some_and(|n| n != need) {
            return fault(
                Kind::Barrier,
                format!("barrier {id} of {} threads, which others use with {}", need * 32, b.warps.unwrap_or(0) * 32),
            );
        }
        if b.waiting.contains(&warp.id) {
            return fault(Kind::Barrier, format!("warp {} is at barrier {id} already", warp.id));
        }
        b.warps = Some(need);
        b.arrived += 1;
        self.events += 1;
        if let Some((mode, dst, p, negated)) = red {
            let p = (warp.regs.flag[p.row as usize] ^ if negated { u32::MAX } else { 0 }) & ex;
            b.votes[0] += ex.count_ones();
            b.votes[1] += p.count_ones();
            b.results.push((warp.id, mode, dst, ex));
        }
        if !arrive {
            b.waiting.push(warp.id);
        }
        if let Some(s) = &mut self.shadow {
            s.bar_arrive(warp.id, id);
        }
        if b.arrived < need {
            if !arrive {
                warp.wait = Some(Wait::Bar(id));
            }
            return Ok(!arrive);
        }
        let b: Bar = std::mem::take(&mut self.bars[id]);
        if let Some(s) = &mut self.shadow {
            s.bar_done(id, &b.waiting);
        }
        for &(w, mode, dst, lanes) in &b.results {
            let v = match mode {
                Vote::All => u64::from(b.votes[1] == b.votes[0]),
                Vote::Popc => u64::from(b.votes[1]),
                _ => u64::from(b.votes[1] > 0),
            };
            let regs = if w == warp.id { &mut warp.regs } else { &mut self.warps[w].regs };
            (0..LANES).filter(|l| lanes >> l & 1 == 1).for_each(|l| regs.set_lane(dst, l, v));
            regs.learn(dst, lanes);
        }
        for w in b.waiting {
            if w != warp.id {
                self.warps[w].wait = None;
            }
        }
        Ok(false)
    }

    /// Nothing can go on: where every warp is.
    fn hang(&mut self) -> Step {
        let mut kind = Kind::Deadlock;
        let mut places = Vec::new();
        let mut first = None;
        for w in self.warps.iter().filter(|w| !w.done()) {
            let at = match &w.wait {
                Some(Wait::Bar(id)) => {
                    let b = &self.bars[*id];
                    format!(
                        "barrier {id} ({} of {} warps there), {}",
                        b.arrived,
                        b.warps.unwrap_or(0),
                        self.where_is(w.parts.first().map_or(0, |p| p.pc.saturating_sub(1)))
                    )
                }
                Some(Wait::Group(pc)) => format!("its warp group, {}", self.where_is(*pc)),
                None => {
                    if w.parts.len() > 1 {
                        kind = Kind::Divergence;
                    }
                    let parts = w.parts.iter().map(|p| format!("lanes {:#x} at {}", p.mask, self.where_is(p.pc)));
                    parts.collect::<Vec<_>>().join(" and ")
                }
            };
            first.get_or_insert((w.id, w.parts.first().map_or(0, |p| p.pc), w.parts.first().map_or(1, |p| p.mask)));
            places.push(format!("warp {} at {at}", w.id));
        }
        if let Some(p) = first {
            self.place = p;
        }
        let gone = self.warps.iter().filter(|w| w.done()).count();
        let exited = if gone > 0 { format!("; {gone} warps have exited") } else { String::new() };
        Err(Box::new(Fault {
            kind,
            lane: None,
            address: None,
            message: format!("every warp waits: {}{exited}", places.join("; ")),
        }))
    }

    /// What was asynchronous ends; what was never waited for is a mistake.
    fn finish(&mut self) -> Step {
        for w in 0..self.warps.len() {
            self.place = (w, self.code().len() as u32, 1);
            let mut warp = std::mem::take(&mut self.warps[w]);
            self.copies_left(&warp)?;
            while let Some(g) = warp.copies.next(0) {
                self.finish_copies(&warp, g)?;
            }
            self.bulk_wait(&mut warp, 0, false)?;
            self.warps[w] = warp;
        }
        if !self.pending.is_empty() {
            return fault(Kind::NotWaited, "the block ends with bulk loads under way");
        }
        for (n, b) in self.bars.iter().enumerate() {
            if b.arrived > 0 {
                return fault(
                    Kind::Barrier,
                    format!("the block ends with {} of {} warps at barrier {n}", b.arrived, b.warps.unwrap_or(0)),
                );
            }
        }
        if let Some(word) = self.shadow.as_ref().and_then(crate::shadow::Shadow::still_held) {
            return Err(Box::new(Fault {
                kind: Kind::NotWaited,
                lane: None,
                address: Some(word as u64 * 4),
                message: "the block ends while shared memory is still read".into(),
            }));
        }
        Ok(())
    }
}
