//! Matrix instructions (PTX ISA 9.7.14 and 9.7.15): `ldmatrix`, `stmatrix`, `mma`, `wgmma`, and `setmaxnreg`.

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::parse::{Instruction, Operand};
use crate::program::{Elem, Exec, Mma, Wgmma};
use crate::regs::Reg;
use crate::types::{Space, Type};

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    Ok(Some(match i.op.as_str() {
        "ldmatrix" | "stmatrix" => tiles(c, i)?,
        "mma" => mma(c, i)?,
        "wgmma" => wgmma(c, i)?,
        "setmaxnreg" => {
            let mut m = Mods::of(i);
            m.ty()?;
            let inc = m.take("inc");
            if !inc && !m.take("dec") {
                return Err("expected .inc or .dec".into());
            }
            aligned(&mut m)?;
            m.done()?;
            match operand(i, 0)? {
                Operand::Int(n @ 24..=256) if n % 8 == 0 => Exec::SetMaxReg { inc, n: *n as u32 },
                o => return Err(format!("found `{o}`, expected a multiple of 8 from 24 to 256")),
            }
        }
        _ => return Ok(None),
    }))
}

fn aligned(m: &mut Mods) -> Found<()> {
    if m.take("sync") && m.take("aligned") { Ok(()) } else { Err("expected .sync.aligned".into()) }
}

/// Registers of a fragment: exactly so many, all of 32 bits.
fn fragment(c: &mut Context, o: &Operand, n: usize, write: bool) -> Found<Box<[Reg]>> {
    let list = c.vector(o).to_vec();
    if list.len() != n {
        return Err(format!("found {} registers, expected {n}", list.len()));
    }
    let one = |o: &Operand| if write { c.write(o, Type::B32, false) } else { c.read(o, Type::B32) };
    Ok(list.iter().map(one).collect::<Found<Vec<Reg>>>()?.into())
}

fn tiles(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    if m.ty()? != Type::B16 {
        return Err("expected type b16".into());
    }
    aligned(&mut m)?;
    let trans = m.take("trans");
    let n = if m.take("x1") {
        1
    } else if m.take("x2") {
        2
    } else if m.take("x4") {
        4
    } else {
        return Err("expected .x1, .x2 or .x4".into());
    };
    if !m.take("m8n8") {
        return Err("expected .m8n8".into());
    }
    let space = m.find(Space::named).unwrap_or(Space::Generic);
    if !matches!(space, Space::Shared | Space::Generic) {
        return Err("expected shared memory".into());
    }
    m.done()?;
    let [a, b] = operands(i)?;
    Ok(if i.op == "ldmatrix" {
        let from = c.address(b)?;
        Exec::LdMatrix { space, trans, dst: fragment(c, a, n, true)?, from }
    } else {
        let to = c.address(a)?;
        Exec::StMatrix { space, trans, src: fragment(c, b, n, false)?, to }
    })
}

fn mma(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    aligned(&mut m)?;
    let k = m.find(|s| match s {
        "m16n8k4" => Some(4u8),
        "m16n8k8" => Some(8),
        "m16n8k16" => Some(16),
        "m16n8k32" => Some(32),
        _ => None,
    });
    let k = k.ok_or("expected a shape m16n8k4 to m16n8k32")?;
    if !m.take("row") || !m.take("col") {
        return Err("expected .row.col".into());
    }
    let saturates = m.take("satfinite");
    let elem = match m.left.as_slice() {
        [_, "bf16", "bf16", _] => Elem::Bf16,
        [_, "f16", "f16", _] => Elem::F16,
        [_, "tf32", "tf32", _] => Elem::Tf32,
        [_, a @ ("s8" | "u8"), b @ ("s8" | "u8"), _] => Elem::Int([*a == "s8", *b == "s8"]),
        [_, a @ ("e4m3" | "e5m2"), b @ ("e4m3" | "e5m2"), _] => Elem::Fp8([*a == "e5m2", *b == "e5m2"]),
        _ => return Err("expected A and B of bf16, f16, tf32, or bytes".into()),
    };
    let int = matches!(elem, Elem::Int(_));
    let half = match m.left.as_slice() {
        ["f32", _, _, "f32"] if !int => false,
        ["f16", "f16", "f16", "f16"] => true,
        ["s32", _, _, "s32"] if int => false,
        _ => return Err("expected accumulators of f32, of s32 for integers, or all of f16".into()),
    };
    let (na, nb) = match (elem, k) {
        (Elem::Bf16 | Elem::F16, 16) | (Elem::Tf32, 8) | (Elem::Int(_) | Elem::Fp8(_), 32) => (4, 2),
        (Elem::Bf16 | Elem::F16, 8) | (Elem::Tf32, 4) | (Elem::Int(_), 16) => (2, 1),
        _ => return Err("this shape is not of this type".into()),
    };
    if saturates && !int {
        return Err("`.satfinite` is for s32".into());
    }
    let nd = if half { 2 } else { 4 };
    let [d, a, b, cc] = operands(i)?;
    let (a, b, cc) = (fragment(c, a, na, false)?, fragment(c, b, nb, false)?, fragment(c, cc, nd, false)?);
    let d = fragment(c, d, nd, true)?;
    Ok(Exec::Mma(Mma { k, elem, half, saturates, regs: [d, a, b, cc] }))
}

fn wgmma(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    aligned(&mut m)?;
    c.kernel.has_wgmma = true;
    if m.take("fence") {
        m.done()?;
        return Ok(Exec::WgFence);
    }
    if m.take("commit_group") {
        m.done()?;
        return Ok(Exec::WgCommit);
    }
    if m.take("wait_group") {
        m.done()?;
        return match operand(i, 0)? {
            Operand::Int(n @ 0..=7) => Ok(Exec::WgWait(*n as u32)),
            o => Err(format!("found `{o}`, expected a constant from 0 to 7")),
        };
    }
    if !m.take("mma_async") {
        return Err("this form of wgmma is not supported".into());
    }
    let shape = m.find(|s| {
        let (n, k) = s.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<u16>().ok()?, k.parse::<u8>().ok()?))
    });
    let shape = shape.filter(|(n, _)| n % 8 == 0 && (8..=256).contains(n));
    let (n, k) = shape.ok_or("expected a shape m64nNkK with N a multiple of 8 up to 256")?;
    let elem = match m.left.as_slice() {
        ["f32", "bf16", "bf16"] => Elem::Bf16,
        ["f32", "f16", "f16"] => Elem::F16,
        ["f32", "tf32", "tf32"] => Elem::Tf32,
        ["f32", a @ ("e4m3" | "e5m2"), b @ ("e4m3" | "e5m2")] => Elem::Fp8([*a == "e5m2", *b == "e5m2"]),
        _ => return Err("expected f32 accumulators and operands of bf16, f16, tf32, e4m3 or e5m2".into()),
    };
    // only elements of two bytes may lie along M or N
    let (depth, turns) = match elem {
        Elem::Tf32 => (8, false),
        Elem::Fp8(_) => (32, false),
        _ => (16, true),
    };
    if k != depth {
        return Err(format!("found k{k}, operands of this type have k{depth}"));
    }
    let in_regs = matches!(operand(i, 1)?, Operand::Vector(_));
    let all = 6 + if turns { 2 - usize::from(in_regs) } else { 0 };
    if i.operands.len() != all {
        return Err(format!("found {} operands, expected {all}", i.operands.len()));
    }
    let constant = |n: usize, allowed: [i64; 2]| match operand(i, n)? {
        Operand::Int(v) if allowed.contains(&(*v as i64)) => Ok(*v as i64),
        o => Err(format!("found `{o}`, expected {} or {}", allowed[0], allowed[1])),
    };
    let (a, a_desc) = if in_regs {
        let f = fragment(c, operand(i, 1)?, 4, false)?;
        (Some([f[0], f[1], f[2], f[3]]), None)
    } else {
        (None, Some(c.read(operand(i, 1)?, Type::B64)?))
    };
    let b_desc = c.read(operand(i, 2)?, Type::B64)?;
    let (scale_d, negated) = c.predicate(operand(i, 3)?)?;
    if negated {
        return Err("a negated scale-d is not supported".into());
    }
    let signs = [constant(4, [1, -1])? as f32, constant(5, [1, -1])? as f32];
    let trans = match (turns, in_regs) {
        (false, _) => [false; 2],
        (true, true) => [false, constant(6, [0, 1])? == 1],
        (true, false) => [constant(6, [0, 1])? == 1, constant(7, [0, 1])? == 1],
    };
    let d = fragment(c, operand(i, 0)?, usize::from(n) / 2, true)?;
    Ok(Exec::Wgmma(Box::new(Wgmma { n, k, elem, d, a, a_desc, b_desc, scale_d, signs, trans })))
}
