//! Moves (PTX ISA 9.7.9).

use super::*;

pub(super) fn moves(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    m.done()?;
    let [d, s] = operands(i)?;
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
