//! What a warp group does together: `wgmma` (PTX ISA 9.7.15), its fence, groups and waits, and `setmaxnreg`.

use super::panels::{DEPTH, Matrix, even_then_odd, product, read_chunks, read_registers};
use super::warp::Wait;
use super::{Block, Product};
use crate::finding::{Fault, Kind, Step, fault};
use crate::program::{Exec, Wgmma};
use crate::regs::{LANES, Reg};

/// Rows of the registers of a product.
fn rows(m: &Wgmma) -> impl Iterator<Item = usize> {
    m.d.iter().chain(m.a.iter().flatten()).map(|r| r.row as usize)
}

/// The words of chunks of sixteen bytes.
fn spans(chunks: &[u32]) -> impl Iterator<Item = std::ops::Range<usize>> + Clone {
    chunks.iter().map(|&a| a as usize / 4..a as usize / 4 + 4)
}

impl Block<'_> {
    /// The chunks of a matrix, which must lie in shared memory and have been written.
    fn operand(&self, m: Matrix, chunks: &mut Vec<u32>) -> Step {
        let first = chunks.len();
        chunks.extend(m.chunks());
        let all = &chunks[first..];
        let (low, high) = all.iter().fold((u32::MAX, 0), |(low, high), &a| (low.min(a), high.max(a)));
        // mostly all of it is in one variable
        let inside = high < u32::MAX - 16 && self.shared.check(low.into(), (high + 16 - low) as usize, 16).is_ok();
        for &a in all {
            let wrong = if !inside && let Err(wrong) = self.shared.check(a.into(), 16, 16) {
                wrong
            } else if !self.shared.knows(a as usize, 16) {
                (Kind::Uninitialised, "shared memory that nobody wrote".into())
            } else {
                continue;
            };
            return Err(Box::new(Fault {
                kind: wrong.0,
                lane: None,
                address: Some(a.into()),
                message: format!("{} (operand of a wgmma)", wrong.1),
            }));
        }
        Ok(())
    }

    /// Warp `w` has come to an instruction of its group; whether the group went on.
    pub(super) fn group(&mut self, w: usize) -> Step<bool> {
        let Some(Wait::Group(pc)) = self.warps[w].wait else { return Ok(true) };
        self.place = (w, pc, self.warps[w].parts.first().map_or(1, |p| p.mask));
        let first = w / 4 * 4;
        let ws = first..first + 4;
        if ws.end > self.warps.len() {
            return fault(
                Kind::Divergence,
                format!("warps {first} to {} are no whole warp group", self.warps.len() - 1),
            );
        }
        for v in ws.clone() {
            match &self.warps[v].wait {
                Some(Wait::Group(other)) if *other == pc => {}
                Some(Wait::Group(other)) => {
                    let other = self.where_is(*other);
                    return fault(Kind::Divergence, format!("warp {v} of the same warp group is at {other}"));
                }
                _ if self.warps[v].done() => {
                    return fault(Kind::Divergence, format!("warp {v} of the same warp group has exited"));
                }
                _ => return Ok(false),
            }
        }
        let inst = &self.code()[pc as usize];
        match &inst.exec {
            Exec::WgFence => ws.clone().for_each(|v| self.warps[v].fences += 1),
            Exec::Wgmma(m) => self.issue(first, pc, m)?,
            Exec::WgCommit => self.products[first / 4].close(),
            Exec::WgWait(keep) => {
                while let Some(group) = self.products[first / 4].next(*keep as usize) {
                    for p in group {
                        if !p.done {
                            self.product(first, &p)?;
                        }
                        self.end_uses(first, &p);
                    }
                }
            }
            Exec::SetMaxReg { inc, n } => {
                let pool = ((65_536 / (32 * self.warps.len() as u32)) & !7).min(248) * self.allotted.len() as u32;
                let others: u32 = self.allotted.iter().sum::<u32>() - self.allotted[first / 4];
                if *inc && others + n > pool {
                    return Ok(false);
                }
                if *inc != (*n >= self.allotted[first / 4]) && *n != self.allotted[first / 4] {
                    return fault(
                        Kind::Descriptor,
                        format!("setmaxnreg from {} to {n} in the wrong direction", self.allotted[first / 4]),
                    );
                }
                self.allotted[first / 4] = *n;
            }
            _ => {}
        }
        self.events += 1;
        for v in ws {
            let warp = &mut self.warps[v];
            warp.wait = None;
            if let Some(p) = warp.parts.first_mut() {
                p.pc += 1;
            }
            for &r in &inst.writes {
                warp.regs.learn(r, u32::MAX);
            }
        }
        Ok(true)
    }

    fn end_uses(&mut self, first: usize, p: &Product) {
        let Exec::Wgmma(m) = &self.code()[p.pc as usize].exec else { return };
        for warp in &mut self.warps[first..first + 4] {
            rows(m).for_each(|r| warp.busy[r] -= 1);
        }
        if let Some(s) = &mut self.shadow {
            s.let_go(first..first + 4, spans(&p.chunks));
        }
    }

    /// Descriptors and scale-d are read now; registers and shared memory at any time up to the wait.
    fn issue(&mut self, first: usize, pc: u32, m: &Wgmma) -> Step {
        for v in first..first + 4 {
            let warp = &self.warps[v];
            if rows(m).any(|r| warp.touched[r] == warp.fences) {
                return fault(Kind::InFlight, format!("no wgmma.fence since warp {v} touched its registers"));
            }
        }
        let uniform = |r: Reg, what: &str| -> Step<u64> {
            let x = self.warps[first].regs.lane(r, 0);
            for v in first..first + 4 {
                let row = self.warps[v].regs.row64(r);
                if let Some(l) = (row != [x; LANES]).then(|| row.iter().position(|&y| y != x)).flatten() {
                    return Err(Box::new(Fault {
                        kind: Kind::Descriptor,
                        lane: Some(l),
                        address: None,
                        message: format!("{what} differs between the lanes of a warp group"),
                    }));
                }
            }
            Ok(x)
        };
        let b = uniform(m.b_desc, "a descriptor")?;
        let a = match m.a_desc {
            Some(r) => uniform(r, "a descriptor")?,
            None => 0,
        };
        let add = uniform(m.scale_d, "scale-d")? != 0;
        let mut chunks = Vec::with_capacity(128 + 2 * usize::from(m.n));
        self.operand(Matrix::new(b, m.n.into(), m.trans[1])?, &mut chunks)?;
        if m.a_desc.is_some() {
            self.operand(Matrix::new(a, 64, m.trans[0])?, &mut chunks)?;
        }
        if let Some(s) = &mut self.shadow {
            s.hold(first..first + 4, spans(&chunks), "a wgmma")?;
        }
        for warp in &mut self.warps[first..first + 4] {
            rows(m).for_each(|r| warp.busy[r] += 1);
        }
        let now = self.eager();
        if now {
            // in order: those that were put off come first
            let mut before = std::mem::take(&mut self.products[first / 4]);
            for p in before.closed.iter_mut().flatten().chain(&mut before.open).filter(|p| !p.done) {
                self.product(first, p)?;
                p.done = true;
            }
            self.products[first / 4] = before;
        }
        let p = Product { pc, add, done: now, chunks };
        if now {
            self.product(first, &p)?;
        }
        self.products[first / 4].open.push(p);
        Ok(())
    }

    /// D = A·B (+ D).
    fn product(&mut self, first: usize, p: &Product) -> Step {
        let Exec::Wgmma(m) = &self.code()[p.pc as usize].exec else { return Ok(()) };
        let (b_chunks, a_chunks) = p.chunks.split_at(2 * usize::from(m.n));
        let k = usize::from(m.k);
        let mut panels = std::mem::take(&mut self.panels);
        // what is not of this depth is not looked at
        panels.resize(9, [[0.0; 8]; DEPTH]);
        let (b, a) = panels.split_at_mut(1);
        for (n, panel) in a.iter_mut().enumerate() {
            match m.a {
                None => {
                    let at = &a_chunks[16 * n..16 * (n + 1)];
                    read_chunks(m.elem, 0, &self.shared.bytes, at, m.trans[0], panel);
                }
                Some(regs) => {
                    // rows from 8 on are in the odd registers
                    let row = |i: usize| &self.warps[first + n / 2].regs.word[regs[i].row as usize];
                    read_registers(m.elem, [row(n % 2), row(2 + n % 2)], panel);
                }
            }
        }
        if m.signs[0] * m.signs[1] < 0.0 {
            a.iter_mut().flat_map(|p| p[..k].as_flattened_mut()).for_each(|v| *v = -*v);
        }
        let b = &mut b[0];
        for (j, at) in b_chunks.chunks_exact(16).enumerate() {
            read_chunks(m.elem, 1, &self.shared.bytes, at, m.trans[1], b);
            even_then_odd(&mut b[..k]);
            for (n, panel) in a.iter().enumerate() {
                let sums = product(k, panel, b);
                let regs = &mut self.warps[first + n / 2].regs;
                for (odd, sums) in sums.iter().enumerate() {
                    // row 16w + 8h + g, column 8j + 2q + e is register 4j + 2h + e of lane 4g + q
                    let d = &mut regs.word[m.d[4 * j + 2 * (n % 2) + odd].row as usize];
                    for (d, s) in d.iter_mut().zip(sums) {
                        let old = if p.add { f64::from(f32::from_bits(*d)) } else { 0.0 };
                        *d = ((s + old) as f32).to_bits();
                    }
                }
            }
        }
        self.panels = panels;
        Ok(())
    }
}
