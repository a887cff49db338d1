//! Loads, stores, atomics, prefetches and fences (PTX ISA 9.7.9 and 9.7.12.4).

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::parse::{Instruction, Operand};
use crate::program::{Exec, Fence, Rmw};
use crate::types::{Space, Type};

/// Modifiers that say how caches are used or what other threads see, and nothing about a value.
const HINTS: [&str; 22] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::evict_last",
    "L1::evict_first",
    "L1::no_allocate",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "weak",
    "relaxed",
    "volatile",
    "cta",
    "cluster",
    "gpu",
    "sys",
];

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    Ok(Some(match i.op.as_str() {
        "ld" | "ldu" => load(c, i)?,
        "st" => store(c, i)?,
        "atom" | "red" => atom(c, i)?,
        "prefetch" | "prefetchu" => prefetch(c, i)?,
        "membar" => {
            let mut m = Mods::of(i);
            ["gl", "cta", "sys"].iter().for_each(|s| {
                m.take(s);
            });
            m.done()?;
            Exec::Fence(Fence::Memory)
        }
        "fence" => fence(i)?,
        "nanosleep" => {
            let mut m = Mods::of(i);
            m.ty()?;
            m.done()?;
            c.read(operand(i, 0)?, Type::U32)?;
            Exec::Nop
        }
        _ => return Ok(None),
    }))
}

fn hints(m: &mut Mods) {
    for h in HINTS {
        m.take(h);
    }
}

fn lanes(m: &mut Mods) -> usize {
    if m.take("v2") {
        2
    } else if m.take("v4") {
        4
    } else {
        1
    }
}

fn load(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let acquire = m.take("acquire");
    hints(&mut m);
    let (nc, n) = (m.take("nc"), lanes(&mut m));
    let space = m.find(Space::named).unwrap_or(Space::Generic);
    m.done()?;
    if acquire {
        return Err("`.acquire` is not supported".into());
    }
    let [d, a] = operands(i)?;
    let from = c.address(a)?;
    let list = c.vector(d).to_vec();
    if list.len() != n {
        return Err(format!("found {} destinations, expected {n}", list.len()));
    }
    let dst = list.iter().map(|o| c.write(o, ty, true)).collect::<Found<Vec<_>>>()?;
    Ok(Exec::Load { space, ty, dst: dst.into(), from, nc })
}

fn store(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if m.take("release") {
        return Err("`.release` is not supported".into());
    }
    hints(&mut m);
    let n = lanes(&mut m);
    let space = m.find(Space::named).unwrap_or(Space::Generic);
    m.done()?;
    if matches!(space, Space::Const | Space::Param) {
        return Err(format!("stores to {space:?} memory are not supported"));
    }
    let [a, s] = operands(i)?;
    let to = c.address(a)?;
    let list = c.vector(s).to_vec();
    if list.len() != n {
        return Err(format!("found {} sources, expected {n}", list.len()));
    }
    let src = list.iter().map(|o| c.read_loose(o, ty)).collect::<Found<Vec<_>>>()?;
    Ok(Exec::Store { space, ty, src: src.into(), to })
}

fn atom(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if m.take("acquire") || m.take("release") || m.take("acq_rel") {
        return Err("an order other than relaxed is not supported".into());
    }
    hints(&mut m);
    m.take("noftz");
    let space = m.find(Space::named).unwrap_or(Space::Generic);
    let op = m.find(Rmw::named).ok_or("found no operation")?;
    m.done()?;
    let known = match op {
        Rmw::Add => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::F32 | Type::F64),
        Rmw::Min | Rmw::Max => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64),
        Rmw::Inc | Rmw::Dec => ty == Type::U32,
        _ => matches!(ty, Type::B32 | Type::B64),
    };
    if !known {
        return Err(format!("{op:?} of {ty:?} is not supported"));
    }
    let first = usize::from(i.op == "atom");
    let expected = first + 2 + usize::from(op == Rmw::Cas);
    if i.operands.len() != expected {
        return Err(format!("found {} operands, expected {expected}", i.operands.len()));
    }
    let to = c.address(operand(i, first)?)?;
    let a = c.read(operand(i, first + 1)?, ty)?;
    let b = if op == Rmw::Cas { Some(c.read(operand(i, first + 2)?, ty)?) } else { None };
    let dst = if first == 1 { Some(c.write(operand(i, 0)?, ty, false)?) } else { None };
    Ok(Exec::Atom { space, ty, op, dst, to, a, b })
}

/// Prefetches move nothing that a program sees; that of a tensor map is checked for being one.
fn prefetch(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let map = m.take("tensormap");
    for s in ["global", "local", "param", "L1", "L2", "L2::evict_last", "L2::evict_normal"] {
        m.take(s);
    }
    m.done()?;
    let a = c.address(operand(i, 0)?)?;
    Ok(if map { Exec::PrefetchMap(a) } else { Exec::Nop })
}

fn fence(i: &Instruction) -> Found<Exec> {
    if let Some(o) = i.operands.first().filter(|o| **o != Operand::List(Vec::new())) {
        return Err(format!("found `{o}`, expected no operands"));
    }
    let mut m = Mods::of(i);
    let kind = if m.take("proxy") {
        if !m.take("async") && !m.take("async::generic") {
            return Err("only the asynchronous proxy is supported".into());
        }
        for s in ["shared::cta", "shared::cluster", "global"] {
            m.take(s);
        }
        Fence::Proxy
    } else if m.take("mbarrier_init") {
        m.take("release");
        m.take("cluster");
        Fence::MbarrierInit
    } else {
        if !m.take("sc") && !m.take("acq_rel") {
            return Err("this fence is not supported".into());
        }
        for s in ["cta", "cluster", "gpu", "sys"] {
            m.take(s);
        }
        Fence::Memory
    };
    m.done()?;
    Ok(Exec::Fence(kind))
}
