//! Asynchronous copies and mbarriers (PTX ISA 9.7.9.25 and 9.7.13.15).

use super::{Context, Mods, operand};
use crate::error::Found;
use crate::parse::{Instruction, Operand};
use crate::program::{Address, Exec, Mbarrier, Rmw};
use crate::regs::Reg;
use crate::types::Type;

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    Ok(Some(match i.op.as_str() {
        "cp" if i.has("reduce") => reduce(c, i)?,
        "cp" if i.has("bulk") => bulk(c, i)?,
        "cp" => small(c, i)?,
        "mbarrier" => mbarrier(c, i)?,
        _ => return Ok(None),
    }))
}

/// A number that the instruction carries.
fn number(i: &Instruction, n: usize) -> Found<u32> {
    match operand(i, n)? {
        Operand::Int(v) if *v < 1 << 20 => Ok(*v as u32),
        o => Err(format!("found `{o}`, expected a small constant")),
    }
}

fn count(i: &Instruction, allowed: std::ops::RangeInclusive<usize>) -> Found<()> {
    if allowed.contains(&i.operands.len()) {
        return Ok(());
    }
    Err(format!("found {} operands, expected {} to {}", i.operands.len(), allowed.start(), allowed.end()))
}

/// `cp.async` of 4, 8 or 16 bytes a thread.
fn small(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    if !m.take("async") {
        return Err("this copy is not supported".into());
    }
    if m.take("commit_group") {
        m.done()?;
        return Ok(Exec::CpCommit);
    }
    if m.take("wait_all") {
        m.done()?;
        return Ok(Exec::CpWait(None));
    }
    if m.take("wait_group") {
        m.done()?;
        return Ok(Exec::CpWait(Some(number(i, 0)?)));
    }
    if m.take("mbarrier") {
        if !m.take("arrive") || m.ty()? != Type::B64 {
            return Err("expected cp.async.mbarrier.arrive of b64".into());
        }
        let noinc = m.take("noinc");
        for s in ["shared", "shared::cta"] {
            m.take(s);
        }
        m.done()?;
        count(i, 1..=1)?;
        return Ok(Exec::CpArrive { at: c.address(operand(i, 0)?)?, noinc });
    }
    let cg = m.take("cg");
    if !cg && !m.take("ca") {
        return Err("expected .ca or .cg".into());
    }
    for s in ["L2::64B", "L2::128B", "L2::256B"] {
        m.take(s);
    }
    if !(m.take("shared") || m.take("shared::cta") || m.take("shared::cluster")) || !m.take("global") {
        return Err("expected a copy from global to shared memory".into());
    }
    m.done()?;
    count(i, 3..=4)?;
    let bytes = number(i, 2)?;
    if !matches!(bytes, 4 | 8 | 16) || cg && bytes != 16 {
        return Err(format!("found {bytes} bytes, expected 4, 8 or 16, and 16 for .cg"));
    }
    let (to, from) = (c.address(operand(i, 0)?)?, c.address(operand(i, 1)?)?);
    let size = if i.operands.len() == 4 { Some(c.read(operand(i, 3)?, Type::U32)?) } else { None };
    Ok(Exec::CpAsync { bytes, to, from, size })
}

/// `[map, {x, y, ..}]`.
fn tensor(c: &mut Context, o: &Operand, rank: usize) -> Found<(Address, Box<[Reg]>)> {
    let Operand::Tensor(map, at) = o else { return Err(format!("found `{o}`, expected [map, {{coordinates}}]")) };
    if at.len() != rank {
        return Err(format!("found {} coordinates, expected {rank}", at.len()));
    }
    let map = Address { base: c.base(map)?, offset: 0 };
    let at = at.iter().map(|o| c.read(o, Type::S32)).collect::<Found<Vec<Reg>>>()?;
    Ok((map, at.into()))
}

/// `cp.reduce.async.bulk` and `cp.reduce.async.bulk.tensor` from shared to global memory.
fn reduce(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    if !m.take("reduce") || !m.take("async") || !m.take("bulk") {
        return Err("this copy is not supported".into());
    }
    let tensor = m.take("tensor");
    let ty = if tensor { None } else { Some(m.ty()?) };
    m.take("noftz");
    let op = m.find(|s| Rmw::named(s).filter(|op| !matches!(op, Rmw::Exch | Rmw::Cas))).ok_or("found no operation")?;
    if !m.take("global") || !m.take("shared::cta") || !m.take("bulk_group") {
        return Err("expected a reduction from shared::cta to global memory in a bulk group".into());
    }
    if tensor {
        let rank = rank(&mut m)?;
        m.take("tile");
        m.done()?;
        count(i, 2..=2)?;
        let (map, at) = self::tensor(c, operand(i, 0)?, rank)?;
        return Ok(Exec::TensorReduce { op, from: c.address(operand(i, 1)?)?, map, at });
    }
    m.done()?;
    count(i, 3..=3)?;
    let ty = ty.ok_or("found no type")?;
    let known = match op {
        Rmw::Add => !matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64 | Type::Pred) && ty.bits() >= 16,
        Rmw::Min | Rmw::Max => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64 | Type::F16 | Type::Bf16),
        Rmw::Inc | Rmw::Dec => ty == Type::U32,
        _ => matches!(ty, Type::B32 | Type::B64),
    };
    if !known {
        return Err(format!("{op:?} of {ty:?} is not supported"));
    }
    let (to, from) = (c.address(operand(i, 0)?)?, c.address(operand(i, 1)?)?);
    Ok(Exec::BulkReduce { op, ty, to, from, bytes: c.read(operand(i, 2)?, Type::U32)? })
}

fn rank(m: &mut Mods) -> Found<usize> {
    let rank = m.find(|s| match s.as_bytes() {
        [n @ b'1'..=b'5', b'd'] => Some(usize::from(n - b'0')),
        _ => None,
    });
    rank.ok_or("found no rank from 1d to 5d".into())
}

/// `cp.async.bulk` and `cp.async.bulk.tensor`.
fn bulk(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    if !m.take("async") || !m.take("bulk") {
        return Err("this copy is not supported".into());
    }
    if m.take("commit_group") {
        m.done()?;
        return Ok(Exec::BulkCommit);
    }
    if m.take("wait_group") {
        let read = m.take("read");
        m.done()?;
        return Ok(Exec::BulkWait { newest: number(i, 0)?, read });
    }
    if m.take("tensor") {
        let rank = rank(&mut m)?;
        m.take("tile");
        if (m.take("shared::cluster") || m.take("shared::cta")) && !m.take("bulk_group") {
            if !m.take("global") || !m.take("mbarrier::complete_tx::bytes") {
                return Err("expected a load from global memory that completes on an mbarrier".into());
            }
            m.done()?;
            count(i, 3..=3)?;
            let to = c.address(operand(i, 0)?)?;
            let (map, at) = tensor(c, operand(i, 1)?, rank)?;
            return Ok(Exec::TensorLoad { to, map, at, bar: c.address(operand(i, 2)?)? });
        }
        m.take("global");
        m.done()?;
        count(i, 2..=2)?;
        let (map, at) = tensor(c, operand(i, 0)?, rank)?;
        return Ok(Exec::TensorStore { from: c.address(operand(i, 1)?)?, map, at });
    }
    let store = m.take("bulk_group");
    if !(m.take("shared::cluster") || m.take("shared::cta")) || !m.take("global") {
        return Err("expected a copy between global and shared memory".into());
    }
    if !store && !m.take("mbarrier::complete_tx::bytes") {
        return Err("expected a copy that completes on an mbarrier or in a bulk group".into());
    }
    m.done()?;
    count(i, if store { 3..=3 } else { 4..=4 })?;
    let (to, from) = (c.address(operand(i, 0)?)?, c.address(operand(i, 1)?)?);
    let bytes = c.read(operand(i, 2)?, Type::U32)?;
    Ok(if store {
        Exec::BulkStore { to, from, bytes }
    } else {
        Exec::BulkLoad { to, from, bytes, bar: c.address(operand(i, 3)?)? }
    })
}

fn mbarrier(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    if m.ty()? != Type::B64 {
        return Err("expected type b64".into());
    }
    for s in ["shared", "shared::cta", "shared::cluster", "cta", "cluster", "acquire", "release"] {
        m.take(s);
    }
    let sink = |o: &Operand| match o {
        Operand::Name(n) if n == "_" => Ok(()),
        o => Err(format!("found `{o}`, expected `_`: the state of an mbarrier is not supported, use the parity")),
    };
    let (op, at) = if m.take("init") {
        count(i, 2..=2)?;
        let at = c.address(operand(i, 0)?)?;
        (Mbarrier::Init(c.read(operand(i, 1)?, Type::U32)?), at)
    } else if m.take("inval") {
        count(i, 1..=1)?;
        (Mbarrier::Invalidate, c.address(operand(i, 0)?)?)
    } else if m.take("arrive") {
        let tx = m.take("expect_tx");
        count(i, if tx { 3..=3 } else { 2..=3 })?;
        sink(operand(i, 0)?)?;
        let at = c.address(operand(i, 1)?)?;
        let n = if i.operands.len() == 3 { Some(c.read(operand(i, 2)?, Type::U32)?) } else { None };
        (if tx { Mbarrier::Arrive(None, n) } else { Mbarrier::Arrive(n, None) }, at)
    } else if m.take("expect_tx") {
        m.take("relaxed");
        count(i, 2..=2)?;
        let at = c.address(operand(i, 0)?)?;
        (Mbarrier::ExpectTx(c.read(operand(i, 1)?, Type::U32)?), at)
    } else {
        let sleeps = m.take("try_wait");
        if !sleeps && !m.take("test_wait") || !m.take("parity") {
            return Err("expected init, inval, arrive, expect_tx, try_wait.parity or test_wait.parity".into());
        }
        count(i, 3..=4)?;
        let at = c.address(operand(i, 1)?)?;
        let parity = c.read(operand(i, 2)?, Type::U32)?;
        if i.operands.len() == 4 {
            c.read(operand(i, 3)?, Type::U32)?;
        }
        (Mbarrier::Wait(c.write(operand(i, 0)?, Type::Pred, false)?, parity, sleeps), at)
    };
    m.done()?;
    Ok(Exec::Mbarrier { op, at })
}
