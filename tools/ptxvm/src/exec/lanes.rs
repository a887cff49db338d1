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
    let (b, c) = (r.word[b.row as usize], r.word[c.row as usize]);
    let (mut j, mut inside) = ([0i32; LANES], 0u32);
    // one loop for each mode, so that each is a few vector instructions
    macro_rules! sources {
        ($lane:ident, $b:ident, $min:ident => $j:expr) => {
            for (l, v) in j.iter_mut().enumerate() {
                let ($lane, $b, seg) = (l as i32, b[l] as i32 & 31, c[l] as i32 >> 8 & 31);
                let $min = $lane & seg;
                *v = $j(seg);
            }
        };
    }
    match mode {
        Shuffle::Up => sources!(lane, b, _min => |_| lane - b),
        Shuffle::Down => sources!(lane, b, _min => |_| lane + b),
        Shuffle::Bfly => sources!(lane, b, _min => |_| lane ^ b),
        Shuffle::Idx => sources!(lane, b, min => |seg: i32| min | (b & !seg)),
    }
    let mut from = [0u32; LANES];
    for l in 0..LANES {
        let (lane, clamp, seg) = (l as i32, c[l] as i32 & 31, c[l] as i32 >> 8 & 31);
        let max = (lane & seg) | (clamp & !seg);
        let yes = if mode == Shuffle::Up { j[l] >= max } else { j[l] <= max };
        from[l] = if yes { j[l] as u32 & 31 } else { l as u32 };
        inside |= u32::from(yes) << l;
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
        File::Wide => {
            let values = r.row64(src);
            u64::put(r, dst.row, &from.map(|f| values[f as usize & 31]), ex);
        }
        _ => {
            let values = r.word[src.row as usize];
            u32::put(r, dst.row, &from.map(|f| values[f as usize & 31]), ex);
        }
    }
    if let Some(p) = pred {
        let f = &mut r.flag[p.row as usize];
        *f = *f & !ex | inside & ex;
    }
    Ok(())
}

pub(super) fn vote(r: &mut Regs, ex: u32, mode: Vote, dst: Reg, (src, negated): (Reg, bool), mask: Option<Reg>) {
    let p = r.flag[src.row as usize] ^ if negated { u32::MAX } else { 0 };
    let mut out = [0u64; LANES];
    let mut each = |g: u32| {
        let yes = p & g;
        let v = match mode {
            Vote::All => u64::from(yes == g),
            Vote::Any => u64::from(yes != 0),
            Vote::Uni => u64::from(yes == g || yes == 0),
            Vote::Ballot => u64::from(yes),
            Vote::Popc => u64::from(yes.count_ones()),
        };
        lanes_of(g).for_each(|l| out[l] = v);
    };
    match mask {
        Some(mask) => groups(r, ex, mask, each),
        None => each(ex),
    }
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
