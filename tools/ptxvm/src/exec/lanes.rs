//! What lanes of a warp tell each other (PTX ISA 9.7.9.6, 9.7.13.9 to 9.7.13.12). That all are there was seen before.

use super::lanes_of;
use crate::finding::{Fault, Kind, Step};
use crate::program::{Rmw, Shuffle, Vote};
use crate::regs::{File, LANES, Lane, Reg, Regs};

/// Lanes of the mask that each lane gave, among those here.
fn groups(r: &Regs, ex: u32, mask: Reg, mut f: impl FnMut(u32)) {
    let mut left = ex;
    while left != 0 {
        let g = r.lane(mask, left.trailing_zeros() as usize) as u32 & left;
        // a lane is always in its own mask
        f(g);
        left &= !g;
        if g == 0 {
            return;
        }
    }
}

pub(super) fn shuffle(
    r: &mut Regs,
    ex: u32,
    mode: Shuffle,
    (dst, pred): (Reg, Option<Reg>),
    [src, b, c]: [Reg; 3],
) -> Step {
    let (values, b, c) = (r.row64(src), r.row64(b), r.row64(c));
    let (mut from, mut out, mut inside) = ([0usize; LANES], [0u64; LANES], 0u32);
    for l in 0..LANES {
        let (b, c, lane) = (b[l] as i32 & 31, c[l] as i32, l as i32);
        let (clamp, seg) = (c & 31, c >> 8 & 31);
        let (min, max) = (lane & seg, (lane & seg) | (clamp & !seg));
        let j = match mode {
            Shuffle::Up => lane - b,
            Shuffle::Down => lane + b,
            Shuffle::Bfly => lane ^ b,
            Shuffle::Idx => min | (b & !seg),
        };
        let yes = if mode == Shuffle::Up { j >= max } else { j <= max };
        from[l] = if yes { j as usize & 31 } else { l };
        inside |= u32::from(yes) << l;
    }
    for l in 0..LANES {
        out[l] = values[from[l]];
    }
    if ex != u32::MAX
        && let Some(l) = lanes_of(ex).find(|&l| ex >> from[l] & 1 == 0)
    {
        return Err(Box::new(Fault {
            kind: Kind::Divergence,
            lane: Some(l),
            address: None,
            message: format!("a shuffle from lane {}, which is not there", from[l]),
        }));
    }
    match dst.file {
        File::Wide => u64::put(r, dst.row, &out, ex),
        _ => u32::put(r, dst.row, &out.map(|v| v as u32), ex),
    }
    if let Some(p) = pred {
        let f = &mut r.flag[p.row as usize];
        *f = *f & !ex | inside & ex;
    }
    Ok(())
}

pub(super) fn vote(r: &mut Regs, ex: u32, mode: Vote, dst: Reg, (src, negated): (Reg, bool), mask: Reg) {
    let p = r.flag[src.row as usize] ^ if negated { u32::MAX } else { 0 };
    let mut out = [0u64; LANES];
    groups(r, ex, mask, |g| {
        let yes = p & g;
        let v = match mode {
            Vote::All => u64::from(yes == g),
            Vote::Any => u64::from(yes != 0),
            Vote::Uni => u64::from(yes == g || yes == 0),
            Vote::Ballot => u64::from(yes),
            Vote::Popc => u64::from(yes.count_ones()),
        };
        lanes_of(g).for_each(|l| out[l] = v);
    });
    lanes_of(ex).for_each(|l| r.set_lane(dst, l, out[l]));
}

pub(super) fn matching(r: &mut Regs, ex: u32, all: bool, (dst, pred): (Reg, Option<Reg>), src: Reg, mask: Reg) {
    let values: [u64; LANES] = std::array::from_fn(|l| r.lane(src, l));
    let mut out = [0u32; LANES];
    groups(r, ex, mask, |g| {
        for l in lanes_of(g) {
            let same = lanes_of(g).filter(|&k| values[k] == values[l]).fold(0, |m, k| m | 1u32 << k);
            out[l] = if all && same != g { 0 } else { same };
        }
    });
    for l in lanes_of(ex) {
        r.set_lane(dst, l, out[l].into());
        if let Some(p) = pred {
            r.set_lane(p, l, u64::from(out[l] != 0));
        }
    }
}

pub(super) fn redux(r: &mut Regs, ex: u32, (op, signed): (Rmw, bool), dst: Reg, src: Reg, mask: Reg) {
    let values: [u32; LANES] = std::array::from_fn(|l| r.lane(src, l) as u32);
    let mut out = [0u32; LANES];
    groups(r, ex, mask, |g| {
        let v = lanes_of(g).map(|l| values[l]).reduce(|a, b| match (op, signed) {
            (Rmw::Add, _) => a.wrapping_add(b),
            (Rmw::Min, true) => (a as i32).min(b as i32) as u32,
            (Rmw::Max, true) => (a as i32).max(b as i32) as u32,
            (Rmw::Min, false) => a.min(b),
            (Rmw::Max, false) => a.max(b),
            (Rmw::And, _) => a & b,
            (Rmw::Or, _) => a | b,
            _ => a ^ b,
        });
        lanes_of(g).for_each(|l| out[l] = v.unwrap_or(0));
    });
    lanes_of(ex).for_each(|l| r.set_lane(dst, l, out[l].into()));
}

pub(super) fn elect(r: &mut Regs, ex: u32, dst: Option<Reg>, pred: Reg, mask: Reg) {
    let mut out = [0usize; LANES];
    groups(r, ex, mask, |g| lanes_of(g).for_each(|l| out[l] = g.trailing_zeros() as usize));
    for l in lanes_of(ex) {
        r.set_lane(pred, l, u64::from(out[l] == l));
        if let Some(d) = dst {
            r.set_lane(d, l, out[l] as u64);
        }
    }
}
