//! Moves (PTX ISA 9.7.9).

use super::super::{LOCAL, PARAM, SHARED, WINDOWS_END};
use super::*;
use crate::types::Space;

pub(super) fn moves(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let lanes = m.find(|s| match s {
        "v2" => Some(2),
        "v4" => Some(4),
        "v8" => Some(8),
        _ => None,
    });
    m.done()?;
    let [d, s] = operands(i)?;
    if let Some(n) = lanes {
        let (Operand::Vector(d), Operand::Vector(s)) = (d, s) else { return Err("expected two vectors".into()) };
        if d.len() != n || s.len() != n {
            return Err(format!("found {} and {} registers, expected {n}", d.len(), s.len()));
        }
        let s = s.iter().map(|o| c.read(o, ty)).collect::<Found<Vec<Reg>>>()?;
        let d = d.iter().map(|o| c.write(o, ty, false)).collect::<Found<Vec<Reg>>>()?;
        return Ok(Box::new(move |r, mask| {
            let rows: Vec<_> = s.iter().map(|&s| r.row64(s)).collect();
            for (&d, row) in d.iter().zip(&rows) {
                match d.file {
                    File::Wide => u64::put(r, d.row, row, mask),
                    _ => u32::put(r, d.row, &row.map(|v| v as u32), mask),
                }
            }
        }));
    }
    let part = |n: usize| match ty.bits() as usize / n {
        16 => Ok(Type::B16),
        32 => Ok(Type::B32),
        8 => Ok(Type::B8),
        b => Err(format!("found parts of {b} bits")),
    };
    match (d, s) {
        (_, Operand::Vector(v)) => {
            let p = part(v.len())?;
            let from = v.iter().map(|o| c.read(o, p)).collect::<Found<Vec<Reg>>>()?;
            let d = c.write(d, ty, false)?;
            let bits = p.bits();
            Ok(Box::new(move |r, mask| {
                let mut all = [0u64; LANES];
                for (n, &reg) in from.iter().enumerate() {
                    let row = &r.word[reg.row as usize];
                    for l in 0..LANES {
                        all[l] |= (u64::from(row[l]) & ((1 << bits) - 1)) << (bits as usize * n);
                    }
                }
                match d.file {
                    File::Wide => u64::put(r, d.row, &all, mask),
                    _ => u32::put(r, d.row, &all.map(|v| v as u32), mask),
                }
            }))
        }
        (Operand::Vector(v), _) => {
            let p = part(v.len())?;
            let s = c.read(s, ty)?;
            let to = v.iter().map(|o| c.write(o, p, false)).collect::<Found<Vec<Reg>>>()?;
            let bits = p.bits();
            Ok(Box::new(move |r, mask| {
                let all = r.row64(s);
                for (n, &reg) in to.iter().enumerate() {
                    u32::put(r, reg.row, &all.map(|v| (v >> (bits as usize * n) & ((1 << bits) - 1)) as u32), mask);
                }
            }))
        }
        _ => {
            let (s, d) = (c.read(s, ty)?, c.write(d, ty, false)?);
            Ok(match ty.bits() {
                1 => map1(d, s, |x: bool| x),
                64 => map1(d, s, |x: u64| x),
                _ => map1(d, s, |x: u32| x),
            })
        }
    }
}

/// `mapa` and `getctarank` where a cluster is one block: the address stays what it is, the rank is 0.
pub(super) fn cluster(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    m.take("shared::cluster");
    m.done()?;
    let wide = ty.bits() == 64;
    if i.op == "getctarank" {
        let [d, a] = operands(i)?;
        let (a, d) = (c.read(a, ty)?, c.write(d, Type::U32, false)?);
        return Ok(Exec::Alu(if wide { map1(d, a, |_: u64| 0u32) } else { map1(d, a, |_: u32| 0u32) }));
    }
    let [d, a, rank] = operands(i)?;
    let (a, rank) = (c.read(a, ty)?, c.read(rank, Type::U32)?);
    let d = c.write(d, ty, false)?;
    Ok(Exec::Mapa(if wide { map1(d, a, |a: u64| a) } else { map1(d, a, |a: u32| a) }, rank))
}

/// `isspacep`: the windows of [`crate::decode`], and global memory for everything else.
pub(super) fn in_space(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let space = m.find(Space::named).ok_or("found no space")?;
    m.done()?;
    let [p, a] = operands(i)?;
    let (a, p) = (c.read(a, Type::U64)?, c.write(p, Type::Pred, false)?);
    Ok(map1(p, a, move |a: u64| match space {
        Space::Param => (PARAM..SHARED).contains(&a),
        Space::Shared => (SHARED..LOCAL).contains(&a),
        Space::Local => (LOCAL..WINDOWS_END).contains(&a),
        _ => !(PARAM..WINDOWS_END).contains(&a),
    }))
}
