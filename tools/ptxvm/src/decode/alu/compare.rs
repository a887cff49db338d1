//! Comparisons, and what is chosen by them (PTX ISA 9.7.3, 9.7.6 and 9.7.7).

use super::*;

/// A comparison: on what numbers say, and what NaN makes of it.
#[derive(Clone, Copy)]
struct Test {
    /// Less, equal, greater.
    on: [bool; 3],
    /// The result where one is NaN.
    nan: bool,
}

fn test(name: &str) -> Option<Test> {
    let t = |on: [u8; 3], nan| Some(Test { on: on.map(|v| v == 1), nan });
    match name {
        "eq" => t([0, 1, 0], false),
        "ne" => t([1, 0, 1], false),
        "lt" | "lo" => t([1, 0, 0], false),
        "le" | "ls" => t([1, 1, 0], false),
        "gt" | "hi" => t([0, 0, 1], false),
        "ge" | "hs" => t([0, 1, 1], false),
        "equ" => t([0, 1, 0], true),
        "neu" => t([1, 0, 1], true),
        "ltu" => t([1, 0, 0], true),
        "leu" => t([1, 1, 0], true),
        "gtu" => t([0, 0, 1], true),
        "geu" => t([0, 1, 1], true),
        "num" => t([1, 1, 1], false),
        "nan" => t([0, 0, 0], true),
        _ => None,
    }
}

impl Test {
    #[inline(always)]
    fn holds<T: PartialOrd>(self, x: T, y: T) -> bool {
        let (lt, eq, gt) = (x < y, x == y, x > y);
        (lt & self.on[0]) | (eq & self.on[1]) | (gt & self.on[2]) | (!(lt | eq | gt) & self.nan)
    }
}

pub(super) fn compare(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let result = if i.op == "set" { Some(m.ty()?) } else { None };
    let ftz = m.take("ftz");
    let t = m.find(test).ok_or("found no comparison")?;
    let combine = m.find(|s| matches!(s, "and" | "or" | "xor").then(|| s.to_string()));
    m.done()?;
    let (a, b) = (c.read(operand(i, 1)?, ty)?, c.read(operand(i, 2)?, ty)?);
    let with = match combine {
        Some(how) => Some((how, c.predicate(operand(i, 3)?)?)),
        None if i.operands.len() > 3 => return Err(format!("found {} operands, expected 3", i.operands.len())),
        None => None,
    };
    if let Some(r) = result {
        if with.is_some() {
            return Err("set with a second operand is not supported".into());
        }
        let d = c.write(operand(i, 0)?, r, false)?;
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            // both halves, as 1.0 or as all ones
            let one = match r {
                Type::F16x2 => 0x3C00u32,
                Type::Bf16x2 => 0x3F80,
                Type::U32 | Type::S32 => 0xFFFF,
                _ => return Err("expected a result of two halves".into()),
            };
            let f16s = ty == Type::F16x2;
            let value = move |h: u32| if f16s { f16::from_bits(h as u16).to_f32() } else { f32::from_bits(h << 16) };
            return Ok(map2(d, a, b, move |x: u32, y: u32| {
                let half = |x: u32, y: u32| if t.holds(value(x & 0xFFFF), value(y & 0xFFFF)) { one } else { 0 };
                half(x, y) | half(x >> 16, y >> 16) << 16
            }));
        }
        let value = match r {
            Type::F32 => 0x3F80_0000u32,
            Type::F16 => 0x3C00,
            Type::Bf16 => 0x3F80,
            Type::U16 | Type::S16 => 0xFFFF,
            Type::U32 | Type::S32 => u32::MAX,
            _ => return Err("expected a result of 16 or 32 bits".into()),
        };
        let give = move |yes: bool| if yes { value } else { 0 };
        return Ok(match ty {
            Type::F32 => {
                map2(d, a, b, move |x: f32, y: f32| give(if ftz { t.holds(flush(x), flush(y)) } else { t.holds(x, y) }))
            }
            Type::F64 => map2(d, a, b, move |x: f64, y: f64| give(t.holds(x, y))),
            Type::F16 => map2(d, a, b, move |x: f16, y: f16| give(t.holds(x.to_f32(), y.to_f32()))),
            Type::Bf16 => map2(d, a, b, move |x: bf16, y: bf16| give(t.holds(x.to_f32(), y.to_f32()))),
            _ => ints!(ty, T => map2(d, a, b, move |x: T, y: T| give(t.holds(x, y)))),
        });
    }
    let (p, q) = match operand(i, 0)? {
        Operand::Pair(p, q) => (c.write(p, Type::Pred, false)?, Some(c.write(q, Type::Pred, false)?)),
        o => (c.write(o, Type::Pred, false)?, None),
    };
    let first: Apply = match ty {
        Type::F32 if ftz => map2(p, a, b, move |x: f32, y: f32| t.holds(flush(x), flush(y))),
        Type::F32 => map2(p, a, b, move |x: f32, y: f32| t.holds(x, y)),
        Type::F64 => map2(p, a, b, move |x: f64, y: f64| t.holds(x, y)),
        Type::F16 => map2(p, a, b, move |x: f16, y: f16| t.holds(x.to_f32(), y.to_f32())),
        Type::Bf16 => map2(p, a, b, move |x: bf16, y: bf16| t.holds(x.to_f32(), y.to_f32())),
        _ => ints!(ty, T => map2(p, a, b, move |x: T, y: T| t.holds(x, y))),
    };
    if with.is_none() && q.is_none() {
        return Ok(first);
    }
    // the second destination is the combination with the comparison's negation (9.7.6.1)
    Ok(Box::new(move |r, mask| {
        let other = with.as_ref().map(|(_, (reg, neg))| r.flag[reg.row as usize] ^ if *neg { u32::MAX } else { 0 });
        first(r, mask);
        let t = r.flag[p.row as usize];
        let join = |t: u32| match (&with, other) {
            (Some((how, _)), Some(o)) => match how.as_str() {
                "and" => t & o,
                "or" => t | o,
                _ => t ^ o,
            },
            _ => t,
        };
        let (yes, no) = (join(t), join(!t));
        let f = &mut r.flag[p.row as usize];
        *f = *f & !mask | yes & mask;
        if let Some(q) = q {
            let f = &mut r.flag[q.row as usize];
            *f = *f & !mask | no & mask;
        }
    }))
}

pub(super) fn select(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    if i.op == "slct" {
        let (by, ty) = (m.ty()?, m.ty()?);
        m.done()?;
        if by != Type::S32 || ty.bits() != 32 {
            return Err("expected slct of 32 bits by s32".into());
        }
        let a = args(c, i, ty, &[ty, ty, by])?;
        return Ok(map3(a.d, three(a.s), |x: u32, y: u32, n: i32| if n >= 0 { x } else { y }));
    }
    let ty = m.ty()?;
    m.done()?;
    let [d, a, b, p] = operands(i)?;
    let (p, negated) = c.predicate(p)?;
    let (a, b, d) = (c.read(a, ty)?, c.read(b, ty)?, c.write(d, ty, false)?);
    Ok(match ty.bits() {
        64 => map3(d, [a, b, p], move |x: u64, y: u64, p: bool| if p != negated { x } else { y }),
        _ => map3(d, [a, b, p], move |x: u32, y: u32, p: bool| if p != negated { x } else { y }),
    })
}

pub(super) fn sign(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if ty == Type::F64 && i.op == "copysign" {
        m.done()?;
        let a = args(c, i, ty, &[ty; 2])?;
        return Ok(map2(a.d, a.s[0], a.s[1], |x: f64, y: f64| y.copysign(x)));
    }
    if ty == Type::F64 {
        let f: fn(f64) -> bool = match m.left.pop() {
            Some("finite") => |x| x.is_finite(),
            Some("infinite") => |x| x.is_infinite(),
            Some("number") => |x| !x.is_nan(),
            Some("notanumber") => |x| x.is_nan(),
            Some("normal") => |x| x.is_normal() || x == 0.0,
            Some("subnormal") => |x| x.is_subnormal(),
            _ => return Err("found no property to test".into()),
        };
        m.done()?;
        let a = args(c, i, Type::Pred, &[ty])?;
        return Ok(map1(a.d, a.s[0], f));
    }
    if ty != Type::F32 {
        return Err(format!("type {ty:?} is not supported"));
    }
    if i.op == "copysign" {
        m.done()?;
        let a = args(c, i, ty, &[ty; 2])?;
        return Ok(map2(a.d, a.s[0], a.s[1], |x: f32, y: f32| y.copysign(x)));
    }
    let f: fn(f32) -> bool = m
        .find(|s| -> Option<fn(f32) -> bool> {
            Some(match s {
                "finite" => |x| x.is_finite(),
                "infinite" => |x| x.is_infinite(),
                "number" => |x| !x.is_nan(),
                "notanumber" => |x| x.is_nan(),
                "normal" => |x| x.is_normal() || x == 0.0,
                "subnormal" => |x| x.is_subnormal(),
                _ => return None,
            })
        })
        .ok_or("found no property to test")?;
    m.done()?;
    let a = args(c, i, Type::Pred, &[ty])?;
    Ok(map1(a.d, a.s[0], f))
}
