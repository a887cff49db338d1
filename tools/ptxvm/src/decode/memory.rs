//! Loads, stores, atomics, prefetches and fences (PTX ISA 9.7.9 and 9.7.12.4).

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::parse::{Instruction, Operand};
use crate::program::{Exec, Fence, Rmw, Strength};
use crate::types::{Space, Type};

/// Modifiers that say how caches are used or what other threads see, and nothing about a value.
const HINTS: [&str; 20] = [
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
    [2, 4, 8].into_iter().find(|n| m.take(&format!("v{n}"))).unwrap_or(1)
}

fn strength(m: &mut Mods, order: &str) -> Strength {
    if m.take(order) {
        Strength::Ordered
    } else if m.take("relaxed") || m.take("volatile") {
        Strength::Relaxed
    } else if m.take("nc") {
        Strength::Constant
    } else {
        Strength::Weak
    }
}

/// The space that is written, or that of the variable in the address.
fn space(c: &mut Context, m: &mut Mods, a: &Operand) -> Space {
    let written = m.find(Space::named).unwrap_or(Space::Generic);
    match (written, c.space_of(a)) {
        (Space::Generic, Some(s)) => s,
        // parameters of calls lie in local memory
        (Space::Param, Some(Space::Local)) => Space::Local,
        _ => written,
    }
}

fn load(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let order = strength(&mut m, "acquire");
    hints(&mut m);
    let n = lanes(&mut m);
    let [d, a] = operands(i)?;
    let space = space(c, &mut m, a);
    m.done()?;
    let from = c.address(a)?;
    let list = c.vector(d).to_vec();
    if list.len() != n || n as u32 * ty.bytes() > 16 {
        return Err(format!("found {} destinations, expected {n} of 16 bytes at most", list.len()));
    }
    let dst = list.iter().map(|o| c.write(o, ty, true)).collect::<Found<Vec<_>>>()?;
    Ok(Exec::Load { space, ty, dst: dst.into(), from, order })
}

fn store(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let order = strength(&mut m, "release");
    hints(&mut m);
    let n = lanes(&mut m);
    let [a, s] = operands(i)?;
    let space = space(c, &mut m, a);
    m.done()?;
    if matches!(space, Space::Const | Space::Param) {
        return Err(format!("stores to {space:?} memory are not supported"));
    }
    let to = c.address(a)?;
    let list = c.vector(s).to_vec();
    if list.len() != n || n as u32 * ty.bytes() > 16 {
        return Err(format!("found {} sources, expected {n} of 16 bytes at most", list.len()));
    }
    let src = list.iter().map(|o| c.read_loose(o, ty)).collect::<Found<Vec<_>>>()?;
    Ok(Exec::Store { space, ty, src: src.into(), to, order })
}

fn atom(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    // every atomic takes what others gave; one that releases is a fence before it
    let release = m.take("release") || m.take("acq_rel");
    if !m.take("acquire") {
        m.take("relaxed");
    }
    hints(&mut m);
    m.take("noftz");
    let first = usize::from(i.op == "atom");
    let space = space(c, &mut m, operand(i, first)?);
    let op = m.find(Rmw::named).ok_or("found no operation")?;
    m.done()?;
    let known = match op {
        Rmw::Add => matches!(
            ty,
            Type::U32
                | Type::S32
                | Type::U64
                | Type::F32
                | Type::F64
                | Type::F16
                | Type::F16x2
                | Type::Bf16
                | Type::Bf16x2
        ),
        Rmw::Min | Rmw::Max => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64),
        Rmw::Inc | Rmw::Dec => ty == Type::U32,
        _ => matches!(ty, Type::B32 | Type::B64),
    };
    if !known {
        return Err(format!("{op:?} of {ty:?} is not supported"));
    }
    let expected = first + 2 + usize::from(op == Rmw::Cas);
    if i.operands.len() != expected {
        return Err(format!("found {} operands, expected {expected}", i.operands.len()));
    }
    let to = c.address(operand(i, first)?)?;
    let a = c.read(operand(i, first + 1)?, ty)?;
    let b = if op == Rmw::Cas { Some(c.read(operand(i, first + 2)?, ty)?) } else { None };
    let dst = if first == 1 { Some(c.write(operand(i, 0)?, ty, false)?) } else { None };
    Ok(Exec::Atom { space, ty, op, release, dst, to, a, b })
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
