//! Logic, shifts and single bits (PTX ISA 9.7.1 and 9.7.8).

use super::*;

pub(super) fn logic(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    m.done()?;
    if ty == Type::Pred {
        if i.op == "not" {
            let a = args(c, i, ty, &[ty])?;
            return Ok(map1(a.d, a.s[0], |x: bool| !x));
        }
        let a = args(c, i, ty, &[ty; 2])?;
        let (d, x, y) = (a.d, a.s[0], a.s[1]);
        return Ok(match i.op.as_str() {
            "and" => map2(d, x, y, |x: bool, y: bool| x & y),
            "or" => map2(d, x, y, |x: bool, y: bool| x | y),
            "xor" => map2(d, x, y, |x: bool, y: bool| x ^ y),
            _ => return Err("not for predicates".into()),
        });
    }
    if !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
        return Err(format!("found type {ty:?}, expected b16, b32, b64 or pred"));
    }
    Ok(match i.op.as_str() {
        "not" => {
            let a = args(c, i, ty, &[ty])?;
            ints!(ty, T => map1(a.d, a.s[0], |x: T| !x))
        }
        "cnot" => {
            let a = args(c, i, ty, &[ty])?;
            ints!(ty, T => map1(a.d, a.s[0], |x: T| T::from(x == 0)))
        }
        op => {
            let a = args(c, i, ty, &[ty; 2])?;
            let (d, x, y) = (a.d, a.s[0], a.s[1]);
            match op {
                "and" => ints!(ty, T => map2(d, x, y, |x: T, y: T| x & y)),
                "or" => ints!(ty, T => map2(d, x, y, |x: T, y: T| x | y)),
                _ => ints!(ty, T => map2(d, x, y, |x: T, y: T| x ^ y)),
            }
        }
    })
}

/// Counts beyond the width give zero, or the sign; only `shf.wrap` masks them (9.7.8.7 to 9.7.8.9).
pub(super) fn shift(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if i.op == "shf" {
        let (left, wrap) = (m.take("l"), m.take("wrap"));
        if !left && !m.take("r") || !wrap && !m.take("clamp") || ty != Type::B32 {
            return Err("expected shf.{l,r}.{wrap,clamp}.b32".into());
        }
        m.done()?;
        let a = args(c, i, ty, &[ty, ty, Type::U32])?;
        return Ok(map3(a.d, three(a.s), move |lo: u32, hi: u32, n: u32| {
            let n = if wrap { n & 31 } else { n.min(32) };
            let both = u64::from(hi) << 32 | u64::from(lo);
            if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
        }));
    }
    m.done()?;
    let a = args(c, i, ty, &[ty, Type::U32])?;
    let (d, x, n) = (a.d, a.s[0], a.s[1]);
    Ok(if i.op == "shl" {
        ints!(ty, T => map2(d, x, n, |x: T, n: u32| x.checked_shl(n).unwrap_or(0)))
    } else {
        match ty {
            Type::S16 => map2(d, x, n, |x: i16, n: u32| x >> n.min(15)),
            Type::S32 => map2(d, x, n, |x: i32, n: u32| x >> n.min(31)),
            Type::S64 => map2(d, x, n, |x: i64, n: u32| x >> n.min(63)),
            _ => ints!(ty, T => map2(d, x, n, |x: T, n: u32| x.checked_shr(n).unwrap_or(0))),
        }
    })
}

pub(super) fn bits(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let (amount, wrap) = (m.take("shiftamt"), m.take("wrap"));
    if !wrap && matches!(i.op.as_str(), "bmsk" | "szext") && !m.take("clamp") {
        return Err("expected .clamp or .wrap".into());
    }
    if matches!(i.op.as_str(), "dp4a" | "dp2a") {
        return dot(c, i, m);
    }
    let ty = m.ty()?;
    m.done()?;
    let (wide, u32t) = (ty.bits() == 64, Type::U32);
    Ok(match i.op.as_str() {
        "popc" | "clz" => {
            let a = args(c, i, u32t, &[ty])?;
            match (i.op.as_str(), wide) {
                ("popc", false) => map1(a.d, a.s[0], |x: u32| x.count_ones()),
                ("popc", true) => map1(a.d, a.s[0], |x: u64| x.count_ones()),
                (_, false) => map1(a.d, a.s[0], |x: u32| x.leading_zeros()),
                (_, true) => map1(a.d, a.s[0], |x: u64| x.leading_zeros()),
            }
        }
        "brev" => {
            let a = args(c, i, ty, &[ty])?;
            if wide {
                map1(a.d, a.s[0], |x: u64| x.reverse_bits())
            } else {
                map1(a.d, a.s[0], |x: u32| x.reverse_bits())
            }
        }
        "bfind" => {
            let a = args(c, i, u32t, &[ty])?;
            let bits = ty.bits();
            // of a negative number the first bit that differs from the sign
            let f = move |x: u64, zeros: u32| match x {
                0 => u32::MAX,
                _ if amount => zeros,
                _ => bits - 1 - zeros,
            };
            match ty {
                Type::U32 => map1(a.d, a.s[0], move |x: u32| f(x.into(), x.leading_zeros())),
                Type::S32 => map1(a.d, a.s[0], move |x: u32| {
                    let x = x ^ ((x as i32 >> 31) as u32);
                    f(x.into(), x.leading_zeros())
                }),
                Type::U64 => map1(a.d, a.s[0], move |x: u64| f(x, x.leading_zeros())),
                Type::S64 => map1(a.d, a.s[0], move |x: u64| {
                    let x = x ^ ((x as i64 >> 63) as u64);
                    f(x, x.leading_zeros())
                }),
                t => return Err(format!("found type {t:?}, expected 32 or 64 bits")),
            }
        }
        "bfe" => {
            let a = args(c, i, ty, &[ty, u32t, u32t])?;
            let (s, signed, bits) = (three(a.s), ty.signed(), ty.bits());
            let f = move |x: u64, p: u32, n: u32| extract(x, p & 0xFF, n & 0xFF, signed, bits);
            if wide { map3(a.d, s, f) } else { map3(a.d, s, move |x: u32, p: u32, n: u32| f(x.into(), p, n) as u32) }
        }
        "bfi" => {
            let a = args(c, i, ty, &[ty, ty, u32t, u32t])?;
            let f = |x: u64, y: u64, p: u32, n: u32, bits: u32| {
                let (p, n) = (p & 0xFF, n & 0xFF);
                if p >= bits || n == 0 {
                    return y;
                }
                let ones = (u64::MAX >> (64 - n.min(64))) << p;
                y & !ones | x << p & ones
            };
            if wide {
                map4(a.d, a.s, move |x: u64, y: u64, p: u32, n: u32| f(x, y, p, n, 64))
            } else {
                map4(a.d, a.s, move |x: u32, y: u32, p: u32, n: u32| f(x.into(), y.into(), p, n, 32) as u32)
            }
        }
        "prmt" => {
            let a = args(c, i, ty, &[ty; 3])?;
            map3(a.d, three(a.s), |x: u32, y: u32, s: u32| {
                let b = (u64::from(y) << 32 | u64::from(x)).to_le_bytes();
                u32::from_le_bytes(std::array::from_fn(|n| {
                    let s = s >> (4 * n) & 15;
                    let v = b[s as usize & 7];
                    if s & 8 == 0 { v } else { (v as i8 >> 7) as u8 }
                }))
            })
        }
        "lop3" => {
            let Some(Operand::Int(table)) = i.operands.get(4) else {
                return Err("expected a constant truth table".into());
            };
            let table = *table as u32;
            let short = Instruction { operands: i.operands[..4].to_vec(), ..i.clone() };
            let a = args(c, &short, ty, &[ty; 3])?;
            map3(a.d, three(a.s), move |x: u32, y: u32, z: u32| {
                (0..8).filter(|n| table >> n & 1 == 1).fold(0, |r, n| {
                    let side = |v: u32, on: u32| if on != 0 { v } else { !v };
                    r | side(x, n & 4) & side(y, n & 2) & side(z, n & 1)
                })
            })
        }
        "bmsk" => {
            let a = args(c, i, ty, &[ty; 2])?;
            map2(a.d, a.s[0], a.s[1], move |at: u32, n: u32| {
                let (at, n) = if wrap { (at & 31, n & 31) } else { (at.min(32), n.min(32)) };
                ((((1u64 << n) - 1) << at) & 0xFFFF_FFFF) as u32
            })
        }
        "szext" => {
            let (a, signed) = (args(c, i, ty, &[ty, u32t])?, ty.signed());
            map2(a.d, a.s[0], a.s[1], move |x: u32, n: u32| {
                let n = if wrap { n & 31 } else { n.min(32) };
                match n {
                    0 => 0,
                    _ if signed => (((x << (32 - n)) as i32) >> (32 - n)) as u32,
                    _ => x << (32 - n) >> (32 - n),
                }
            })
        }
        "sad" => {
            let a = args(c, i, ty, &[ty; 3])?;
            ints!(ty, T => map3(a.d, three(a.s), |x: T, y: T, z: T| z.wrapping_add(x.abs_diff(y) as T)))
        }
        _ => return Err("this instruction is not supported".into()),
    })
}

/// `bfe`: the field, and beyond the word its sign (9.7.1.18).
fn extract(x: u64, pos: u32, len: u32, signed: bool, bits: u32) -> u64 {
    let at = |n: u32| x >> n.min(bits - 1) & 1;
    if len == 0 {
        return 0;
    }
    let sign = if signed { at((pos + len - 1).min(bits - 1)) } else { 0 };
    let mut out = if sign == 1 { u64::MAX } else { 0 };
    for n in 0..len.min(bits) {
        let bit = if pos + n < bits { x >> (pos + n) & 1 } else { sign };
        out = out & !(1 << n) | bit << n;
    }
    if bits == 64 { out } else { out & 0xFFFF_FFFF }
}

/// `dp4a`, and `dp2a` of two halves with two bytes.
fn dot(c: &mut Context, i: &Instruction, mut m: Mods) -> Found<Apply> {
    let (b, a) = (m.ty()?, m.ty()?);
    let (hi, lo) = (m.take("hi"), m.take("lo"));
    m.done()?;
    let two = i.op == "dp2a";
    if !matches!((a, b), (Type::S32 | Type::U32, Type::S32 | Type::U32)) || two != (hi != lo) {
        return Err("expected s32 and u32, and .hi or .lo of dp2a".into());
    }
    let r = args(c, i, Type::U32, &[Type::U32; 3])?;
    let (sa, sb) = (a.signed(), b.signed());
    let byte = |v: u32, n: u32, signed: bool| {
        let v = (v >> (8 * n)) as u8;
        if signed { i32::from(v as i8) } else { i32::from(v) }
    };
    let half = |v: u32, n: u32, signed: bool| {
        let v = (v >> (16 * n)) as u16;
        if signed { i32::from(v as i16) } else { i32::from(v) }
    };
    let first = if hi { 2 } else { 0 };
    Ok(map3(r.d, three(r.s), move |x: u32, y: u32, z: u32| {
        if two {
            (0..2).fold(z, |s, n| s.wrapping_add(half(x, n, sa).wrapping_mul(byte(y, first + n, sb)) as u32))
        } else {
            (0..4).fold(z, |s, n| s.wrapping_add((byte(x, n, sa) * byte(y, n, sb)) as u32))
        }
    }))
}

/// `vshl` and `vshr` of whole words, alone or with a second operation.
pub(super) fn video_shift(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let second = match m.left.last() {
        Some(&("add" | "min" | "max")) => m.left.pop(),
        _ => None,
    };
    let (wrap, clamp) = (m.take("wrap"), m.take("clamp"));
    let (by, from, to) = (m.ty()?, m.ty()?, m.ty()?);
    m.done()?;
    if wrap == clamp || by != Type::U32 || from != to || !matches!(from, Type::U32 | Type::S32) {
        return Err("expected whole words of one type, shifted by u32 with .clamp or .wrap".into());
    }
    let (left, signed) = (i.op == "vshl", from.signed());
    let shift = move |x: u32, n: u32| {
        let n = if wrap { n & 31 } else { n };
        match (left, signed) {
            (true, _) => x.checked_shl(n).unwrap_or(0),
            (_, true) => ((x as i32) >> n.min(31)) as u32,
            _ => x.checked_shr(n).unwrap_or(0),
        }
    };
    let Some(second) = second else {
        let a = args(c, i, to, &[from, by])?;
        return Ok(map2(a.d, a.s[0], a.s[1], shift));
    };
    let a = args(c, i, to, &[from, by, to])?;
    let f: fn(u32, u32) -> u32 = match (second, signed) {
        ("add", _) => |x, y| x.wrapping_add(y),
        ("min", true) => |x, y| (x as i32).min(y as i32) as u32,
        ("max", true) => |x, y| (x as i32).max(y as i32) as u32,
        ("min", _) => |x, y| x.min(y),
        _ => |x, y| x.max(y),
    };
    Ok(map3(a.d, three(a.s), move |x: u32, n: u32, z: u32| f(shift(x, n), z)))
}
