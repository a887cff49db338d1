//! Barriers, and what lanes of a warp do together (PTX ISA 9.7.9.6 and 9.7.13).

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::parse::{Instruction, Operand};
use crate::program::{Exec, Rmw, Shuffle, Vote};
use crate::regs::Reg;
use crate::types::Type;

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    Ok(Some(match i.op.as_str() {
        "bar" | "barrier" => barrier(c, i)?,
        "shfl" => shuffle(c, i)?,
        "vote" => vote(c, i)?,
        "match" => matching(c, i)?,
        "redux" => redux(c, i)?,
        "elect" => elect(c, i)?,
        "activemask" => {
            let mut m = Mods::of(i);
            m.ty()?;
            m.done()?;
            Exec::ActiveMask(c.write(operand(i, 0)?, Type::B32, false)?)
        }
        _ => return Ok(None),
    }))
}

fn barrier(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    m.take("cta");
    if m.take("warp") {
        m.take("sync");
        m.done()?;
        return Ok(Exec::WarpSync(c.read(operand(i, 0)?, Type::B32)?));
    }
    if m.take("cluster") {
        // of one block: whoever waits has arrived, so that arriving need not be seen
        for s in ["aligned", "acquire", "release", "relaxed"] {
            m.take(s);
        }
        let wait = m.take("wait");
        if !wait && !m.take("arrive") {
            return Err("expected .arrive or .wait".into());
        }
        m.done()?;
        return Ok(if wait { Exec::ClusterWait } else { Exec::Nop });
    }
    m.take("aligned");
    let (sync, arrive) = (m.take("sync"), m.take("arrive"));
    if m.take("red") {
        let ty = m.ty()?;
        let mode = m.find(votes).ok_or("found no reduction")?;
        m.done()?;
        let (threads, p) = match i.operands.len() {
            3 => (None, operand(i, 2)?),
            4 => (Some(c.read(operand(i, 2)?, Type::U32)?), operand(i, 3)?),
            n => return Err(format!("found {n} operands, expected 3 or 4")),
        };
        let (id, (p, negated)) = (c.read(operand(i, 1)?, Type::U32)?, c.predicate(p)?);
        let d = c.write(operand(i, 0)?, ty, false)?;
        c.reads.retain(|&r| r != d);
        return Ok(Exec::Bar { id, threads, arrive: false, red: Some((mode, d, p, negated)) });
    }
    m.done()?;
    let id = c.read(operand(i, 0)?, Type::U32)?;
    if !sync && !arrive || arrive && i.operands.len() < 2 || i.operands.len() > 2 {
        return Err("expected .sync a{, n} or .arrive a, n".into());
    }
    let threads = if i.operands.len() == 2 { Some(c.read(operand(i, 1)?, Type::U32)?) } else { None };
    Ok(Exec::Bar { id, threads, arrive, red: None })
}

fn votes(s: &str) -> Option<Vote> {
    Some(match s {
        "all" | "and" => Vote::All,
        "any" | "or" => Vote::Any,
        "uni" => Vote::Uni,
        "ballot" => Vote::Ballot,
        "popc" => Vote::Popc,
        _ => return None,
    })
}

/// `d` or `d|p`.
fn pair(c: &mut Context, o: &Operand, ty: Type) -> Found<(Reg, Option<Reg>)> {
    Ok(match o {
        Operand::Pair(d, p) => (c.write(d, ty, false)?, Some(c.write(p, Type::Pred, false)?)),
        o => (c.write(o, ty, false)?, None),
    })
}

fn synchronous(m: &mut Mods) -> Found<()> {
    if m.take("sync") { Ok(()) } else { Err("expected .sync: the form without it is gone since sm_70".into()) }
}

fn shuffle(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    synchronous(&mut m)?;
    let mode = m.find(|s| {
        Some(match s {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Bfly,
            "idx" => Shuffle::Idx,
            _ => return None,
        })
    });
    m.done()?;
    let mode = mode.ok_or("found no mode")?;
    let [d, a, b, cc, mask] = operands(i)?;
    let (src, b, cc) = (c.read(a, ty)?, c.read(b, Type::U32)?, c.read(cc, Type::U32)?);
    let mask = c.read(mask, Type::B32)?;
    let (dst, pred) = pair(c, d, ty)?;
    Ok(Exec::Shfl { mode, dst, pred, src, b, c: cc, mask })
}

fn vote(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    // the form without a mask, of targets before sm_70, is for the lanes that are there
    let sync = m.take("sync");
    let mode = m.find(votes).ok_or("found no mode")?;
    m.done()?;
    if (mode == Vote::Ballot) != (ty == Type::B32) {
        return Err(format!("found type {ty:?} for {mode:?}"));
    }
    let (src, negated) = c.predicate(operand(i, 1)?)?;
    let mask = if sync { Some(c.read(operand(i, 2)?, Type::B32)?) } else { None };
    let d = operand(i, 0)?;
    Ok(Exec::Vote { mode, dst: c.write(d, ty, false)?, src, negated, mask })
}

fn matching(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    synchronous(&mut m)?;
    let all = m.take("all");
    if !all && !m.take("any") {
        return Err("expected .any or .all".into());
    }
    m.done()?;
    let [d, a, mask] = operands(i)?;
    let (src, mask) = (c.read(a, ty)?, c.read(mask, Type::B32)?);
    let (dst, pred) = pair(c, d, Type::B32)?;
    Ok(Exec::Match { all, dst, pred, src, mask })
}

fn redux(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    synchronous(&mut m)?;
    let op = m.find(|s| Rmw::named(s).filter(|op| op.has_redux()));
    m.done()?;
    if ty.bits() != 32 || ty.float() {
        return Err(format!("type {ty:?} is not supported"));
    }
    let [d, a, mask] = operands(i)?;
    let (src, mask) = (c.read(a, ty)?, c.read(mask, Type::B32)?);
    let op = op.ok_or("found no operation")?;
    Ok(Exec::Redux { op, signed: ty.signed(), dst: c.write(d, ty, false)?, src, mask })
}

fn elect(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    synchronous(&mut m)?;
    m.done()?;
    let [d, mask] = operands(i)?;
    let mask = c.read(mask, Type::B32)?;
    let Operand::Pair(d, p) = d else { return Err(format!("found `{d}`, expected d|p")) };
    let dst = if **d == Operand::Name("_".into()) { None } else { Some(c.write(d, Type::B32, false)?) };
    Ok(Exec::Elect { dst, pred: c.write(p, Type::Pred, false)?, mask })
}
