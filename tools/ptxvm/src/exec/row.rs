//! The addresses of a warp's access, where they lie, and the values that go there or come from there.

use super::{Warp, lanes_of};
use crate::decode::{LOCAL, PARAM, SHARED, WINDOWS_END};
use crate::finding::{Fault, Kind, Step, fault_at};
use crate::memory::Access;
use crate::program::Address;
use crate::regs::{File, LANES, Lane, Reg, Regs};
use crate::types::{Space, Type};

/// Places a fault of memory.
pub(super) fn placed<T>(r: Access<T>, lane: usize, address: u64) -> Step<T> {
    r.map_err(|(kind, message)| Box::new(Fault { kind, lane: Some(lane), address: Some(address), message }))
}

pub(super) fn by_lane(mut f: Box<Fault>, lane: usize) -> Box<Fault> {
    f.lane.get_or_insert(lane);
    f
}

/// The space of a generic address, and the address there.
pub(super) fn resolve(space: Space, a: u64) -> (Space, u64) {
    match (space, a) {
        (Space::Generic, PARAM..SHARED) => (Space::Param, a),
        (Space::Generic, SHARED..LOCAL) => (Space::Shared, a - SHARED),
        (Space::Generic, LOCAL..WINDOWS_END) => (Space::Local, a - LOCAL),
        (Space::Generic | Space::Const, _) => (Space::Global, a),
        _ => (space, a),
    }
}

/// An address that must be in shared memory.
pub(super) fn in_shared(space: Space, a: u64, lane: usize) -> Step<u64> {
    match resolve(space, a) {
        (Space::Shared, a) => Ok(a),
        _ => fault_at(Kind::OutOfBounds, lane, a, "a matrix outside of shared memory"),
    }
}

/// The addresses of the lanes, without those of no lane.
pub(super) fn address_list(warp: &Warp, ex: u32, a: Address, out: &mut [(usize, u64); LANES]) -> usize {
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

pub(super) fn aligned(a: u64, len: usize, lane: usize) -> Step {
    if a.is_multiple_of(len as u64) {
        return Ok(());
    }
    fault_at(Kind::Misaligned, lane, a, format!("an access of {len} bytes"))
}

/// The addresses of a warp's access, and the runs of neighbouring bytes that they make: most accesses are one or few.
pub(super) struct Row {
    /// By lane; lanes that take no part have the address of one that does.
    pub at: [u64; LANES],
    pub mask: u32,
    pub(super) runs: [(u64, u64); LANES],
    pub(super) n: usize,
    /// The runs ascend, and none touches another.
    pub(super) ascends: bool,
}

impl Row {
    #[inline(always)]
    pub(super) fn new(warp: &Warp, mask: u32, a: Address, len: usize) -> Row {
        let mut at = warp.regs.row64(a.base);
        at.iter_mut().for_each(|x| *x = x.wrapping_add(a.offset as u64));
        Row::of(at, mask, len)
    }

    #[inline(always)]
    pub(super) fn of(at: [u64; LANES], mask: u32, len: usize) -> Row {
        let len = len as u64;
        let mut row = Row { at, mask, runs: [(0, 0); LANES], n: 1, ascends: true };
        let first = at[mask.trailing_zeros() as usize & 31];
        if mask == u32::MAX {
            let apart = at.iter().enumerate().fold(0, |d, (l, &x)| d | x ^ first.wrapping_add(l as u64 * len));
            if apart == 0 {
                row.runs[0] = (first, first.wrapping_add(32 * len));
                return row;
            }
        } else {
            for (l, x) in row.at.iter_mut().enumerate() {
                *x = if mask >> l & 1 == 1 { *x } else { first };
            }
        }
        let (mut run, mut last) = ((first, first.wrapping_add(len)), first);
        row.n = 0;
        for x in row.at {
            if x == last {
                continue;
            }
            last = x;
            if x == run.1 {
                run.1 = x.wrapping_add(len);
            } else if x < run.0 || x.wrapping_add(len) > run.1 {
                row.push(run);
                run = (x, x.wrapping_add(len));
            }
        }
        row.push(run);
        row
    }

    #[inline(always)]
    fn push(&mut self, run: (u64, u64)) {
        self.ascends &= self.n == 0 || run.0 > self.runs[self.n - 1].1;
        self.runs[self.n] = run;
        self.n += 1;
    }

    pub(super) fn runs(&self) -> &[(u64, u64)] {
        &self.runs[..self.n]
    }

    pub(super) fn aligned(&self, len: usize) -> bool {
        self.at.iter().fold(0, |m, &a| m | a) & (len as u64 - 1) == 0
    }

    /// Whether a loop over lanes sees no address twice and no bank either.
    pub(super) fn is_one_run(&self) -> bool {
        self.n == 1 && self.at.is_sorted()
    }

    /// Makes generic addresses those of the one space they are all in.
    #[inline(always)]
    pub(super) fn resolve(&mut self, space: Space) -> Option<Space> {
        let (to, first) = resolve(space, self.runs[0].0);
        let by = self.runs[0].0.wrapping_sub(first);
        if space == Space::Generic {
            let inside = |a: u64| resolve(space, a).0 == to;
            if !self.runs().iter().all(|r| inside(r.0) && inside(r.1.wrapping_sub(1))) {
                return None;
            }
            if by != 0 {
                self.at.iter_mut().for_each(|a| *a -= by);
                self.runs[..self.n].iter_mut().for_each(|r| *r = (r.0 - by, r.1 - by));
            }
        }
        Some(to)
    }

    pub(super) fn list(&self, out: &mut [(usize, u64); LANES]) -> usize {
        let mut n = 0;
        for l in lanes_of(self.mask) {
            out[n] = (l, self.at[l]);
            n += 1;
        }
        n
    }
}

/// Words of a row as the values of registers.
#[inline(always)]
pub(super) fn deliver(regs: &mut Regs, ty: Type, dst: &[Reg], w: &[[u32; LANES]; 4], ex: u32) {
    let size = ty.bytes() as usize;
    for (n, &d) in dst.iter().enumerate() {
        match size {
            8 => {
                let v: [u64; LANES] =
                    std::array::from_fn(|l| u64::from(w[2 * n][l]) | u64::from(w[2 * n + 1][l]) << 32);
                u64::put(regs, d.row, &v, ex);
            }
            4 if d.file == File::Word => u32::put(regs, d.row, &w[n], ex),
            4 if ty == Type::S32 => i64::put(regs, d.row, &w[n].map(|v| i64::from(v as i32)), ex),
            4 => u64::put(regs, d.row, &w[n].map(u64::from), ex),
            _ => {
                let (row, shift) = (&w[n * size / 4], 8 * (n * size % 4));
                let v = match ty {
                    Type::S8 => row.map(|v| (v >> shift) as u8 as i8 as i64),
                    Type::S16 => row.map(|v| (v >> shift) as u16 as i16 as i64),
                    _ if size == 1 => row.map(|v| (v >> shift) as u8 as i64),
                    _ => row.map(|v| (v >> shift) as u16 as i64),
                };
                match d.file {
                    File::Wide => i64::put(regs, d.row, &v, ex),
                    _ => u32::put(regs, d.row, &v.map(|v| v as u32), ex),
                }
            }
        }
    }
}

/// Values of registers as words of a row.
#[inline(always)]
pub(super) fn collect(regs: &Regs, ty: Type, src: &[Reg], w: &mut [[u32; LANES]; 4]) {
    let size = ty.bytes() as usize;
    for (n, &s) in src.iter().enumerate() {
        match (size, s.file) {
            (8, _) => {
                let v = regs.row64(s);
                w[2 * n] = v.map(|v| v as u32);
                w[2 * n + 1] = v.map(|v| (v >> 32) as u32);
            }
            (4, File::Word) => w[n] = regs.word[s.row as usize],
            (4, _) => w[n] = regs.row64(s).map(|v| v as u32),
            _ => {
                let (v, to, shift) = (regs.row64(s), n * size / 4, 8 * (n * size % 4));
                let ones = (1 << (8 * size)) - 1;
                for l in 0..LANES {
                    w[to][l] |= (v[l] as u32 & ones) << shift;
                }
            }
        }
    }
}
