//! `cvt` and `cvta` (PTX ISA 9.7.9.21 and 9.7.9.19).

use half::{bf16, f16};

use super::{Context, LOCAL, Mods, PARAM, SHARED, operand, operands};
use crate::error::Found;
use crate::numeric::*;
use crate::parse::Instruction;
use crate::program::Exec;
use crate::regs::*;
use crate::types::{Space, Type};

/// How a float becomes an integer value.
type Integral = fn(f64) -> f64;

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    match i.op.as_str() {
        "cvt" => convert(c, i).map(|a| Some(Exec::Alu(a))),
        "cvta" => window(c, i).map(|a| Some(Exec::Alu(a))),
        _ => Ok(None),
    }
}

fn window(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let to = m.take("to");
    let space = m.find(Space::named).ok_or("found no space")?;
    m.done()?;
    if ty != Type::U64 {
        return Err(format!("found type {ty:?}, expected u64"));
    }
    let [d, s] = operands(i)?;
    let (s, d) = (c.read(s, ty)?, c.write(d, ty, false)?);
    let base = match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        _ => 0,
    };
    // the address of a parameter is given with its window, so that taking it twice adds nothing
    Ok(match (space, to) {
        (Space::Global | Space::Const | Space::Generic | Space::Param, _) => map1(d, s, |x: u64| x),
        (_, true) => map1(d, s, move |x: u64| x.wrapping_sub(base)),
        (_, false) => map1(d, s, move |x: u64| x.wrapping_add(base)),
    })
}

/// `cvt.pack.sat`: two numbers into the lower parts, what a third one has there above them.
fn pack_integers(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let third = m.left.last() == Some(&"b32");
    if third {
        m.left.pop();
    }
    let (from, to) = (m.ty()?, m.ty()?);
    if !m.take("pack") || !m.take("sat") || from != Type::S32 || to.float() || third != (to.bits() == 8) {
        return Err("expected .pack.sat of two s32, with .b32 for parts of 8 bits".into());
    }
    m.done()?;
    let (a, b) = (c.read(operand(i, 1)?, from)?, c.read(operand(i, 2)?, from)?);
    let rest = if third { c.read(operand(i, 3)?, Type::B32)? } else { c.constant(Type::B32, 0) };
    let d = c.write(operand(i, 0)?, Type::B32, false)?;
    let ((low, high), n) = (range(to), to.bits());
    let part = move |v: i32| (i128::from(v).clamp(low, high) as u32) & ((1 << n) - 1);
    Ok(map3(d, [a, b, rest], move |a: i32, b: i32, rest: u32| {
        rest.checked_shl(2 * n).unwrap_or(0) | part(a) << n | part(b)
    }))
}

/// `cvt` to and from pairs of bytes that are floats.
fn bytes(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let named = |s: &str| match s {
        "e4m3x2" => Some(false),
        "e5m2x2" => Some(true),
        _ => None,
    };
    let relu = m.take("relu");
    if !m.take("rn") {
        return Err("expected .rn".into());
    }
    if m.left.last().copied().and_then(named).is_some() {
        let e5m2 = m.left.pop().and_then(named) == Some(true);
        if m.ty()? != Type::F16x2 {
            return Err("expected a result of f16x2".into());
        }
        m.done()?;
        let [d, s] = operands(i)?;
        let (s, d) = (c.read(s, Type::B16)?, c.write(d, Type::F16x2, false)?);
        return Ok(map1(d, s, move |x: u16| {
            let half = |b: u8| {
                let v = from_fp8(b, e5m2);
                let v = if relu && v < 0.0 { 0.0 } else { v };
                u32::from(to_f16(v, Round::Nearest).to_bits())
            };
            half(x as u8) | half((x >> 8) as u8) << 16
        }));
    }
    let from = m.ty()?;
    let e5m2 = m.find(named).ok_or("expected e4m3x2 or e5m2x2")?;
    if !m.take("satfinite") || !matches!(from, Type::F32 | Type::F16x2) {
        return Err("expected .satfinite from f32 or f16x2".into());
    }
    m.done()?;
    let byte = move |v: f32| u16::from(to_fp8(if relu && v < 0.0 { 0.0 } else { v }, e5m2));
    if from == Type::F16x2 {
        let [d, s] = operands(i)?;
        let (s, d) = (c.read(s, from)?, c.write(d, Type::B16, false)?);
        return Ok(map1(d, s, move |x: u32| {
            byte(f16::from_bits(x as u16).to_f32()) | byte(f16::from_bits((x >> 16) as u16).to_f32()) << 8
        }));
    }
    let [d, a, b] = operands(i)?;
    let (a, b, d) = (c.read(a, from)?, c.read(b, from)?, c.write(d, Type::B16, false)?);
    Ok(map2(d, a, b, move |a: f32, b: f32| byte(a) << 8 | byte(b)))
}

/// `cvt` to TF32: ten bits of fraction in the upper bits of a word.
fn tf32(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let from = m.ty()?;
    let relu = m.take("relu");
    // what rounding adds: half of the last place that stays, or just less where that is even
    let half: fn(u32) -> u32 = if m.take("rna") {
        |_| 0x1000
    } else if m.take("rn") {
        |x| 0xFFF + (x >> 13 & 1)
    } else if m.take("rz") {
        |_| 0
    } else {
        return Err("expected .rna, .rn or .rz".into());
    };
    if !m.take("tf32") || from != Type::F32 {
        return Err("expected a result of tf32 from f32".into());
    }
    m.done()?;
    let [d, s] = operands(i)?;
    let (s, d) = (c.read(s, from)?, c.write(d, Type::B32, false)?);
    Ok(map1(d, s, move |x: f32| {
        let x = if relu && x < 0.0 { 0.0 } else { x };
        let bits = x.to_bits();
        match x.is_nan() {
            true => 0x7FFF_FFFF,
            false if x.is_infinite() => bits,
            false => (bits + half(bits)) & 0xFFFF_E000,
        }
    }))
}

fn convert(c: &mut Context, i: &Instruction) -> Found<Apply> {
    if i.has("pack") {
        return pack_integers(c, i);
    }
    if i.has("tf32") {
        return tf32(c, i);
    }
    if ["e4m3x2", "e5m2x2"].iter().any(|b| i.has(b)) {
        return bytes(c, i);
    }
    let mut m = Mods::of(i);
    let (from, to) = (m.ty()?, m.ty()?);
    let (ftz, sat, relu) = (m.take("ftz"), m.take("sat"), m.take("relu"));
    let mode = m.find(Round::named);
    let integral: Option<Integral> = m.find(|s| -> Option<Integral> {
        Some(match s {
            "rni" => |x| x.round_ties_even(),
            "rzi" => |x| x.trunc(),
            "rmi" => |x| x.floor(),
            "rpi" => |x| x.ceil(),
            _ => return None,
        })
    });
    m.done()?;
    if matches!(to, Type::Bf16x2 | Type::F16x2) {
        return pack(c, i, from, to, mode.ok_or("expected a rounding mode")?, relu);
    }
    if relu && (from != Type::F32 || !matches!(to, Type::F16 | Type::Bf16)) {
        return Err("`.relu` is for f32 to f16 and bf16".into());
    }
    let [d, s] = operands(i)?;
    let (s, width) = (c.read_loose(s, from)?, c.width(d));
    let d = c.write(d, to, true)?;
    match (from.float(), to.float()) {
        (false, false) => {
            if ftz || mode.is_some() || integral.is_some() {
                return Err("rounding between integers".into());
            }
            Ok(integers(d, s, from, to, width, sat))
        }
        (false, true) => from_integer(d, s, from, to, mode.ok_or("expected a rounding mode")?),
        (true, false) => {
            let f = integral.ok_or("expected a rounding mode to an integer")?;
            let read = float_row(from)?;
            Ok(Box::new(move |r, mask| {
                let x = read(r, s);
                let v = x.map(|x| clamp(f(if ftz && from == Type::F32 { f64::from(flush(x as f32)) } else { x }), to));
                store(r, d, to, &v, mask);
            }))
        }
        (true, true) => floats(d, s, from, to, mode, integral, ftz, (sat, relu)),
    }
}

/// Rows of signed or unsigned integers, carried in 64 bits.
fn load(r: &Regs, s: Reg, ty: Type) -> [i64; LANES] {
    let x = r.row64(s);
    match ty {
        Type::S8 => x.map(|v| i64::from(v as i8)),
        Type::S16 => x.map(|v| i64::from(v as i16)),
        Type::S32 => x.map(|v| i64::from(v as i32)),
        Type::U8 | Type::B8 => x.map(|v| i64::from(v as u8)),
        Type::U16 | Type::B16 => x.map(|v| i64::from(v as u16)),
        Type::U32 | Type::B32 => x.map(|v| i64::from(v as u32)),
        _ => x.map(|v| v as i64),
    }
}

/// Writes values of a type into a register that may be wider: the sign or zeros go up to its width.
fn store(r: &mut Regs, d: Reg, ty: Type, v: &[i64; LANES], mask: u32) {
    let v = match ty {
        Type::S8 => v.map(|v| i64::from(v as i8)),
        Type::S16 => v.map(|v| i64::from(v as i16)),
        Type::S32 => v.map(|v| i64::from(v as i32)),
        Type::U8 | Type::B8 => v.map(|v| i64::from(v as u8)),
        Type::U16 | Type::B16 => v.map(|v| i64::from(v as u16)),
        Type::U32 | Type::B32 => v.map(|v| i64::from(v as u32)),
        _ => *v,
    };
    match d.file {
        File::Wide => i64::put(r, d.row, &v, mask),
        _ => u32::put(r, d.row, &v.map(|v| v as u32), mask),
    }
}

fn range(ty: Type) -> (i128, i128) {
    let b = ty.bits();
    if ty.signed() { (-(1 << (b - 1)), (1 << (b - 1)) - 1) } else { (0, (1 << b) - 1) }
}

fn integers(d: Reg, s: Reg, from: Type, to: Type, width: u32, sat: bool) -> Apply {
    if !sat && from.bits() >= 32 && to.bits() == width && to.bits() >= 32 {
        // the common ones without going through 64 bits
        match (from, d.file) {
            (Type::U32 | Type::B32, File::Wide) => return map1(d, s, |x: u32| u64::from(x)),
            (Type::S32, File::Wide) => return map1(d, s, |x: i32| i64::from(x)),
            (_, File::Word) if s.file == File::Wide => return map1(d, s, |x: u64| x as u32),
            _ => {}
        }
    }
    let (low, high) = range(to);
    let unsigned64 = from.bits() == 64 && !from.signed();
    Box::new(move |r, mask| {
        let mut v = load(r, s, from);
        if sat {
            v = v.map(|v| {
                let v = if unsigned64 { i128::from(v as u64) } else { i128::from(v) };
                v.clamp(low, high) as i64
            });
        }
        store(r, d, to, &v, mask);
    })
}

/// A float that is an integer to the nearest value of a type; NaN is 0.
fn clamp(x: f64, ty: Type) -> i64 {
    let (low, high) = range(ty);
    match ty {
        Type::U64 | Type::B64 => x as u64 as i64,
        Type::S64 => x as i64,
        _ => i128::from(x as i64).clamp(low, high) as i64,
    }
}

fn from_integer(d: Reg, s: Reg, from: Type, to: Type, mode: Round) -> Found<Apply> {
    if from.bits() == 64 && (mode != Round::Nearest || to.bits() == 16) {
        return Err(format!("{from:?} to {to:?} rounded {mode:?} is not supported"));
    }
    let unsigned64 = from.bits() == 64 && !from.signed();
    Ok(match to {
        Type::F32 if from.bits() == 64 => Box::new(move |r, mask| {
            let v = load(r, s, from).map(|v| if unsigned64 { v as u64 as f32 } else { v as f32 });
            f32::put(r, d.row, &v, mask);
        }),
        Type::F32 => Box::new(move |r, mask| {
            let v = load(r, s, from).map(|v| to_f32(v as f64, mode));
            f32::put(r, d.row, &v, mask);
        }),
        Type::F64 => Box::new(move |r, mask| {
            let v = load(r, s, from).map(|v| if unsigned64 { v as u64 as f64 } else { v as f64 });
            f64::put(r, d.row, &v, mask);
        }),
        Type::F16 if mode == Round::Nearest => Box::new(move |r, mask| {
            let v = load(r, s, from).map(|v| f16::nearest(v as f64));
            f16::put(r, d.row, &v, mask);
        }),
        Type::Bf16 if mode == Round::Nearest => Box::new(move |r, mask| {
            let v = load(r, s, from).map(|v| bf16::nearest(v as f64));
            bf16::put(r, d.row, &v, mask);
        }),
        _ => return Err(format!("{from:?} to {to:?} rounded {mode:?} is not supported")),
    })
}

/// Reads rows of a float type as f64.
fn float_row(ty: Type) -> Found<fn(&Regs, Reg) -> [f64; LANES]> {
    Ok(match ty {
        Type::F32 => |r, s| f32::get(r, s.row).map(f64::from),
        Type::F64 => |r, s| f64::get(r, s.row),
        Type::F16 => |r, s| f16::get(r, s.row).map(f64::from),
        Type::Bf16 => |r, s| bf16::get(r, s.row).map(f64::from),
        t => return Err(format!("type {t:?} is not supported")),
    })
}

#[allow(clippy::too_many_arguments)] // one conversion has that many aspects
fn floats(
    d: Reg,
    s: Reg,
    from: Type,
    to: Type,
    mode: Option<Round>,
    integral: Option<Integral>,
    ftz: bool,
    (sat, relu): (bool, bool),
) -> Found<Apply> {
    let narrowing = from.bits() > to.bits();
    if narrowing && mode.is_none() && integral.is_none() {
        return Err("expected a rounding mode".into());
    }
    let mode = mode.unwrap_or(Round::Nearest);
    if from == Type::Bf16 && to == Type::F32 && !sat && !ftz {
        return Ok(map1(d, s, |x: u16| f32::from_bits(u32::from(x) << 16)));
    }
    let finish = move |x: f64| {
        let x = match integral {
            Some(f) => f(x),
            None => x,
        };
        let x = if relu && x < 0.0 { 0.0 } else { x };
        if sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x }
    };
    let read = float_row(from)?;
    let input = move |r: &Regs| {
        let x = read(r, s);
        if ftz && from == Type::F32 { x.map(|x| f64::from(flush(x as f32))) } else { x }
    };
    Ok(match to {
        Type::F32 => Box::new(move |r, mask| {
            let v = input(r).map(|x| to_f32(finish(x), mode));
            let v = if ftz { v.map(flush) } else { v };
            f32::put(r, d.row, &v, mask);
        }),
        Type::F64 => Box::new(move |r, mask| {
            let v = input(r).map(finish);
            f64::put(r, d.row, &v, mask);
        }),
        Type::F16 if from != Type::F64 => Box::new(move |r, mask| {
            let v = input(r).map(|x| to_f16(finish(x) as f32, mode));
            f16::put(r, d.row, &v, mask);
        }),
        Type::Bf16 if from == Type::F32 => Box::new(move |r, mask| {
            let v = input(r).map(|x| to_bf16(finish(x) as f32, mode));
            bf16::put(r, d.row, &v, mask);
        }),
        _ => return Err(format!("{from:?} to {to:?} is not supported")),
    })
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a goes to the upper half.
fn pack(c: &mut Context, i: &Instruction, from: Type, to: Type, mode: Round, relu: bool) -> Found<Apply> {
    if from != Type::F32 || !matches!(mode, Round::Nearest | Round::Zero) {
        return Err("expected two f32 and .rn or .rz".into());
    }
    let (a, b) = (c.read(operand(i, 1)?, from)?, c.read(operand(i, 2)?, from)?);
    let d = c.write(operand(i, 0)?, to, false)?;
    let join = |hi: u16, lo: u16| u32::from(hi) << 16 | u32::from(lo);
    let keep = move |v: f32| if relu && v < 0.0 { 0.0 } else { v };
    Ok(if to == Type::Bf16x2 {
        let one = move |v: f32| to_bf16(keep(v), mode).to_bits();
        map2(d, a, b, move |a: f32, b: f32| join(one(a), one(b)))
    } else {
        let one = move |v: f32| to_f16(keep(v), mode).to_bits();
        map2(d, a, b, move |a: f32, b: f32| join(one(a), one(b)))
    })
}
