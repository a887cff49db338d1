//! Arithmetic, logic, comparisons and moves (PTX ISA 9.7.1 to 9.7.8).

use half::{bf16, f16};

use super::{Context, Mods, operand, operands};
use crate::error::Found;
use crate::numeric::*;
use crate::parse::{Instruction, Operand};
use crate::program::Exec;
use crate::regs::*;
use crate::types::Type;

/// Sources of two, three and four operands after the destination.
struct Args {
    d: Reg,
    s: [Reg; 4],
}

fn args(c: &mut Context, i: &Instruction, d: Type, s: &[Type]) -> Found<Args> {
    if i.operands.len() != s.len() + 1 {
        return Err(format!("found {} operands, expected {}", i.operands.len(), s.len() + 1));
    }
    let mut regs = [Reg { file: File::Word, row: 0 }; 4];
    for (n, &ty) in s.iter().enumerate() {
        regs[n] = c.read(&i.operands[n + 1], ty)?;
    }
    Ok(Args { d: c.write(&i.operands[0], d, false)?, s: regs })
}

/// One closure per integer type: `T` names the type inside of it.
macro_rules! ints {
    ($ty:expr, $T:ident => $e:expr) => {
        match $ty {
            Type::U16 | Type::B16 => {
                type $T = u16;
                $e
            }
            Type::S16 => {
                type $T = i16;
                $e
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $e
            }
            Type::S32 => {
                type $T = i32;
                $e
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $e
            }
            Type::S64 => {
                type $T = i64;
                $e
            }
            t => return Err(format!("found type {t:?}, expected an integer type")),
        }
    };
}

/// The decoded instruction, if it is one of this family.
pub(super) fn decode(c: &mut Context, i: &Instruction) -> Found<Option<Exec>> {
    let alu = match i.op.as_str() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" => {
            return arithmetic(c, i).map(Some);
        }
        "and" | "or" | "xor" | "not" | "cnot" => logic(c, i)?,
        "shl" | "shr" | "shf" => shift(c, i)?,
        "bfe" | "bfi" | "bfind" | "brev" | "clz" | "popc" | "prmt" | "lop3" | "sad" | "dp4a" => bits(c, i)?,
        "setp" | "set" => compare(c, i)?,
        "selp" | "slct" => select(c, i)?,
        "mov" => moves(c, i)?,
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "tanh" | "sin" | "cos" => return unary_float(c, i).map(Some),
        "copysign" | "testp" => sign(c, i)?,
        _ => return Ok(None),
    };
    Ok(Some(Exec::Alu(alu)))
}

fn arithmetic(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if ty.float() {
        let apply = match ty {
            Type::F32 => float32(c, i, &mut m)?,
            Type::F64 => float64(c, i, &mut m)?,
            Type::F16 | Type::F16x2 => narrow::<f16>(c, i, &mut m, ty)?,
            _ => narrow::<bf16>(c, i, &mut m, ty)?,
        };
        m.done()?;
        return Ok(Exec::Alu(apply));
    }
    let (wide, hi, lo, sat) = (m.take("wide"), m.take("hi"), m.take("lo"), m.take("sat"));
    m.done()?;
    if sat && (!matches!(i.op.as_str(), "add" | "sub") || ty != Type::S32) {
        return Err("`.sat` is for add.s32 and sub.s32".into());
    }
    let two = [ty, ty];
    Ok(Exec::Alu(match i.op.as_str() {
        "mul" if wide => return wide_product(c, i, ty, false),
        "mad" if wide => return wide_product(c, i, ty, true),
        "mul" | "mad" if !hi && !lo => return Err("expected one of .hi, .lo and .wide".into()),
        "add" if sat => {
            let a = args(c, i, ty, &two)?;
            map2(a.d, a.s[0], a.s[1], |x: i32, y: i32| x.saturating_add(y))
        }
        "sub" if sat => {
            let a = args(c, i, ty, &two)?;
            map2(a.d, a.s[0], a.s[1], |x: i32, y: i32| x.saturating_sub(y))
        }
        "add" => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.wrapping_add(y)))
        }
        "sub" => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.wrapping_sub(y)))
        }
        "min" => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.min(y)))
        }
        "max" => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.max(y)))
        }
        "mul" if lo => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.wrapping_mul(y)))
        }
        "mul" => {
            let a = args(c, i, ty, &two)?;
            ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| ((i128::from(x) * i128::from(y)) >> T::BITS) as T))
        }
        "mad" if lo => {
            let a = args(c, i, ty, &[ty; 3])?;
            ints!(ty, T => map3(a.d, three(a.s), |x: T, y: T, z: T| x.wrapping_mul(y).wrapping_add(z)))
        }
        "mad" => {
            let a = args(c, i, ty, &[ty; 3])?;
            ints!(ty, T => map3(a.d, three(a.s), |x: T, y: T, z: T| (((i128::from(x) * i128::from(y)) >> T::BITS) as T).wrapping_add(z)))
        }
        "div" => {
            let a = args(c, i, ty, &two)?;
            return Ok(Exec::Divide(
                ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.checked_div(y).unwrap_or(if y == 0 { 0 } else { x }))),
                a.s[1],
            ));
        }
        "rem" => {
            let a = args(c, i, ty, &two)?;
            return Ok(Exec::Divide(
                ints!(ty, T => map2(a.d, a.s[0], a.s[1], |x: T, y: T| x.checked_rem(y).unwrap_or(0))),
                a.s[1],
            ));
        }
        "abs" => {
            let a = args(c, i, ty, &[ty])?;
            match ty {
                Type::S16 => map1(a.d, a.s[0], |x: i16| x.wrapping_abs()),
                Type::S32 => map1(a.d, a.s[0], |x: i32| x.wrapping_abs()),
                Type::S64 => map1(a.d, a.s[0], |x: i64| x.wrapping_abs()),
                t => return Err(format!("found type {t:?}, expected a signed type")),
            }
        }
        "neg" => {
            let a = args(c, i, ty, &[ty])?;
            match ty {
                Type::S16 => map1(a.d, a.s[0], |x: i16| x.wrapping_neg()),
                Type::S32 => map1(a.d, a.s[0], |x: i32| x.wrapping_neg()),
                Type::S64 => map1(a.d, a.s[0], |x: i64| x.wrapping_neg()),
                t => return Err(format!("found type {t:?}, expected a signed type")),
            }
        }
        _ => return Err("not for integers".into()),
    }))
}

fn three(s: [Reg; 4]) -> [Reg; 3] {
    [s[0], s[1], s[2]]
}

fn wide_product(c: &mut Context, i: &Instruction, ty: Type, add: bool) -> Found<Exec> {
    let to = match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        Type::S32 => Type::S64,
        t => return Err(format!("found type {t:?}, expected 16 or 32 bits for .wide")),
    };
    if add {
        let a = args(c, i, to, &[ty, ty, to])?;
        let s = three(a.s);
        return Ok(Exec::Alu(match ty {
            Type::U16 => map3(a.d, s, |x: u16, y: u16, z: u32| (u32::from(x) * u32::from(y)).wrapping_add(z)),
            Type::S16 => map3(a.d, s, |x: i16, y: i16, z: i32| (i32::from(x) * i32::from(y)).wrapping_add(z)),
            Type::U32 => map3(a.d, s, |x: u32, y: u32, z: u64| (u64::from(x) * u64::from(y)).wrapping_add(z)),
            _ => map3(a.d, s, |x: i32, y: i32, z: i64| (i64::from(x) * i64::from(y)).wrapping_add(z)),
        }));
    }
    let a = args(c, i, to, &[ty, ty])?;
    let (d, x, y) = (a.d, a.s[0], a.s[1]);
    Ok(Exec::Alu(match ty {
        Type::U16 => map2(d, x, y, |x: u16, y: u16| u32::from(x) * u32::from(y)),
        Type::S16 => map2(d, x, y, |x: i16, y: i16| i32::from(x) * i32::from(y)),
        Type::U32 => map2(d, x, y, |x: u32, y: u32| u64::from(x) * u64::from(y)),
        _ => map2(d, x, y, |x: i32, y: i32| i64::from(x) * i64::from(y)),
    }))
}

/// Two sources of f32, with `.ftz` and `.sat`.
fn f32_2(a: &Args, ftz: bool, sat: bool, f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Apply {
    let (d, x, y) = (a.d, a.s[0], a.s[1]);
    match (ftz, sat) {
        (false, false) => map2(d, x, y, f),
        (true, false) => map2(d, x, y, move |x, y| flush(f(flush(x), flush(y)))),
        (false, true) => map2(d, x, y, move |x, y| saturate(f(x, y))),
        (true, true) => map2(d, x, y, move |x, y| flush(saturate(f(flush(x), flush(y))))),
    }
}

fn float32(c: &mut Context, i: &Instruction, m: &mut Mods) -> Found<Apply> {
    let (ty, ftz, sat) = (Type::F32, m.take("ftz"), m.take("sat"));
    let round = m.find(Round::named);
    let mode = round.unwrap_or(Round::Nearest);
    let nan = m.take("NaN");
    if nan && !matches!(i.op.as_str(), "min" | "max") {
        return Err("`.NaN` is for min and max".into());
    }
    let exact = mode == Round::Nearest;
    Ok(match i.op.as_str() {
        "add" => {
            let a = args(c, i, ty, &[ty; 2])?;
            if exact { f32_2(&a, ftz, sat, |x, y| x + y) } else { f32_2(&a, ftz, sat, move |x, y| add32(x, y, mode)) }
        }
        "sub" => {
            let a = args(c, i, ty, &[ty; 2])?;
            if exact { f32_2(&a, ftz, sat, |x, y| x - y) } else { f32_2(&a, ftz, sat, move |x, y| add32(x, -y, mode)) }
        }
        "mul" => {
            let a = args(c, i, ty, &[ty; 2])?;
            if exact { f32_2(&a, ftz, sat, |x, y| x * y) } else { f32_2(&a, ftz, sat, move |x, y| mul32(x, y, mode)) }
        }
        "min" => {
            let a = args(c, i, ty, &[ty; 2])?;
            if nan {
                f32_2(&a, ftz, false, |x, y| if x.is_nan() || y.is_nan() { NAN32 } else { min32(x, y) })
            } else {
                f32_2(&a, ftz, false, min32)
            }
        }
        "max" => {
            let a = args(c, i, ty, &[ty; 2])?;
            if nan {
                f32_2(&a, ftz, false, |x, y| if x.is_nan() || y.is_nan() { NAN32 } else { max32(x, y) })
            } else {
                f32_2(&a, ftz, false, max32)
            }
        }
        "fma" | "mad" => {
            if round.is_none() {
                return Err("expected a rounding mode".into());
            }
            let a = args(c, i, ty, &[ty; 3])?;
            let s = three(a.s);
            match (exact, ftz, sat) {
                (true, false, false) => map3(a.d, s, |x: f32, y: f32, z: f32| x.mul_add(y, z)),
                _ => map3(a.d, s, move |x: f32, y: f32, z: f32| {
                    let r = if ftz { flush(fma32(flush(x), flush(y), flush(z), mode)) } else { fma32(x, y, z, mode) };
                    if sat { saturate(r) } else { r }
                }),
            }
        }
        "div" => {
            let (approx, full) = (m.take("approx"), m.take("full"));
            let a = args(c, i, ty, &[ty; 2])?;
            if approx || full {
                let seed = c.perturb;
                f32_2(&a, ftz, false, move |x, y| Approx::Div.value(x, y, seed))
            } else if round.is_none() {
                return Err("expected a rounding mode, .approx or .full".into());
            } else {
                f32_2(&a, ftz, false, move |x, y| div32(x, y, mode))
            }
        }
        "abs" => {
            let a = args(c, i, ty, &[ty])?;
            map1(a.d, a.s[0], move |x: f32| if ftz { flush(x).abs() } else { x.abs() })
        }
        "neg" => {
            let a = args(c, i, ty, &[ty])?;
            map1(a.d, a.s[0], move |x: f32| if ftz { -flush(x) } else { -x })
        }
        _ => return Err("not for f32".into()),
    })
}

fn float64(c: &mut Context, i: &Instruction, m: &mut Mods) -> Found<Apply> {
    let ty = Type::F64;
    if let Some(r) = m.find(Round::named)
        && r != Round::Nearest
    {
        return Err(format!("rounding {r:?} of f64 is not supported"));
    }
    let two = |c: &mut Context, f: fn(f64, f64) -> f64| -> Found<Apply> {
        let a = args(c, i, ty, &[ty; 2])?;
        Ok(map2(a.d, a.s[0], a.s[1], f))
    };
    match i.op.as_str() {
        "add" => two(c, |x, y| x + y),
        "sub" => two(c, |x, y| x - y),
        "mul" => two(c, |x, y| x * y),
        "div" => two(c, |x, y| x / y),
        "min" => two(c, min64),
        "max" => two(c, max64),
        "fma" | "mad" => {
            let a = args(c, i, ty, &[ty; 3])?;
            Ok(map3(a.d, three(a.s), |x: f64, y: f64, z: f64| x.mul_add(y, z)))
        }
        "abs" => {
            let a = args(c, i, ty, &[ty])?;
            Ok(map1(a.d, a.s[0], |x: f64| x.abs()))
        }
        "neg" => {
            let a = args(c, i, ty, &[ty])?;
            Ok(map1(a.d, a.s[0], |x: f64| -x))
        }
        _ => Err("not for f64".into()),
    }
}

/// A narrow format that registers hold.
trait Half: Narrow + Lane {
    fn of(bits: u16) -> Self;
    fn bits(self) -> u16;
}

impl Half for f16 {
    fn of(b: u16) -> f16 {
        f16::from_bits(b)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Half for bf16 {
    fn of(b: u16) -> bf16 {
        bf16::from_bits(b)
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// The two halves of a word, each by itself.
fn halves<T: Half, const N: usize>(x: [u32; N], f: impl Fn([T; N]) -> T) -> u32 {
    let lo = f(x.map(|v| T::of(v as u16))).bits();
    let hi = f(x.map(|v| T::of((v >> 16) as u16))).bits();
    u32::from(hi) << 16 | u32::from(lo)
}

/// bf16 and f16, alone and in pairs: the result is rounded once.
fn narrow<T: Half>(c: &mut Context, i: &Instruction, m: &mut Mods, ty: Type) -> Found<Apply> {
    let pair = ty.bits() == 32;
    if let Some(r) = m.find(Round::named)
        && r != Round::Nearest
    {
        return Err(format!("rounding {r:?} of {ty:?} is not supported"));
    }
    let relu = m.take("relu");
    if m.take("ftz") || m.take("sat") {
        return Err(format!("`.ftz` and `.sat` of {ty:?} are not supported"));
    }
    fn pick<T: Half>(x: T, y: T, max: bool) -> T {
        let v = if max { max32(x.wide(), y.wide()) } else { min32(x.wide(), y.wide()) };
        T::nearest(f64::from(v))
    }
    let two: fn([T; 2]) -> T = match i.op.as_str() {
        "add" => |[x, y]| add_narrow(x, y),
        "sub" => |[x, y]| add_narrow(x, T::of(y.bits() ^ 0x8000)),
        "mul" => |[x, y]| mul_narrow(x, y),
        "min" => |[x, y]| pick(x, y, false),
        "max" => |[x, y]| pick(x, y, true),
        "fma" => {
            let a = args(c, i, ty, &[ty; 3])?;
            let f = move |[x, y, z]: [T; 3]| {
                let r = fma_narrow(x, y, z);
                if relu && r.wide() < 0.0 { T::of(0) } else { r }
            };
            return Ok(if pair {
                map3(a.d, three(a.s), move |x: u32, y: u32, z: u32| halves([x, y, z], f))
            } else {
                map3(a.d, three(a.s), move |x: T, y: T, z: T| f([x, y, z]))
            });
        }
        "neg" | "abs" => {
            let (a, neg) = (args(c, i, ty, &[ty])?, i.op == "neg");
            return Ok(map1(a.d, a.s[0], move |x: u32| if neg { x ^ 0x8000_8000 } else { x & 0x7FFF_7FFF }));
        }
        _ => return Err(format!("not for {ty:?}")),
    };
    if relu {
        return Err("`.relu` is for fma".into());
    }
    let a = args(c, i, ty, &[ty; 2])?;
    Ok(if pair {
        map2(a.d, a.s[0], a.s[1], move |x: u32, y: u32| halves([x, y], two))
    } else {
        map2(a.d, a.s[0], a.s[1], move |x: T, y: T| two([x, y]))
    })
}

fn logic(c: &mut Context, i: &Instruction) -> Found<Apply> {
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
fn shift(c: &mut Context, i: &Instruction) -> Found<Apply> {
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

fn bits(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let amount = m.take("shiftamt");
    if i.op == "dp4a" {
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
        "sad" => {
            let a = args(c, i, ty, &[ty; 3])?;
            match ty {
                Type::S32 => map3(a.d, three(a.s), |x: i32, y: i32, z: u32| z.wrapping_add(x.abs_diff(y))),
                Type::U32 => map3(a.d, three(a.s), |x: u32, y: u32, z: u32| z.wrapping_add(x.abs_diff(y))),
                t => return Err(format!("type {t:?} is not supported")),
            }
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

fn dot(c: &mut Context, i: &Instruction, mut m: Mods) -> Found<Apply> {
    let (b, a) = (m.ty()?, m.ty()?);
    m.done()?;
    if !matches!((a, b), (Type::S32 | Type::U32, Type::S32 | Type::U32)) {
        return Err("expected dp4a of s32 and u32".into());
    }
    let r = args(c, i, Type::U32, &[Type::U32; 3])?;
    let (sa, sb) = (a.signed(), b.signed());
    let byte = |v: u32, n: u32, signed: bool| {
        let v = (v >> (8 * n)) as u8;
        if signed { i32::from(v as i8) } else { i32::from(v) }
    };
    Ok(map3(r.d, three(r.s), move |x: u32, y: u32, z: u32| {
        (0..4).fold(z, |s, n| s.wrapping_add((byte(x, n, sa) * byte(y, n, sb)) as u32))
    }))
}

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

fn compare(c: &mut Context, i: &Instruction) -> Found<Apply> {
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
        if with.is_some() || ty != Type::F32 && ty.float() {
            return Err("this form of set is not supported".into());
        }
        let d = c.write(operand(i, 0)?, r, false)?;
        let value = match r {
            Type::F32 => 0x3F80_0000u32,
            Type::U32 | Type::S32 => u32::MAX,
            _ => return Err("expected a result of u32, s32 or f32".into()),
        };
        let give = move |yes: bool| if yes { value } else { 0 };
        return Ok(match ty {
            Type::F32 => {
                map2(d, a, b, move |x: f32, y: f32| give(if ftz { t.holds(flush(x), flush(y)) } else { t.holds(x, y) }))
            }
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

fn select(c: &mut Context, i: &Instruction) -> Found<Apply> {
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

fn moves(c: &mut Context, i: &Instruction) -> Found<Apply> {
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

/// Functions of one f32 or f64: rounded as written, or approximate.
fn unary_float(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let (approx, ftz) = (m.take("approx"), m.take("ftz"));
    let mode = m.find(Round::named);
    m.done()?;
    let a = args(c, i, ty, &[ty])?;
    let (d, s) = (a.d, a.s[0]);
    if ty == Type::F64 {
        return match (i.op.as_str(), mode) {
            ("sqrt", Some(Round::Nearest)) => Ok(Exec::Alu(map1(d, s, |x: f64| x.sqrt()))),
            ("rcp", Some(Round::Nearest)) => Ok(Exec::Alu(map1(d, s, |x: f64| 1.0 / x))),
            _ => Err("this form for f64 is not supported".into()),
        };
    }
    if ty != Type::F32 {
        return Err(format!("type {ty:?} is not supported"));
    }
    if let Some(mode) = mode {
        let f: fn(f32, Round) -> f32 = match i.op.as_str() {
            "sqrt" => sqrt32,
            "rcp" => |x, m| div32(1.0, x, m),
            _ => return Err("a rounding mode is not for this".into()),
        };
        return Ok(Exec::Alu(map1(d, s, move |x: f32| if ftz { flush(f(flush(x), mode)) } else { f(x, mode) })));
    }
    if !approx {
        return Err("expected .approx or a rounding mode".into());
    }
    let f = match i.op.as_str() {
        "ex2" => Approx::Ex2,
        "lg2" => Approx::Lg2,
        "rcp" => Approx::Rcp,
        "rsqrt" => Approx::Rsqrt,
        "sqrt" => Approx::Sqrt,
        "tanh" => Approx::Tanh,
        "sin" => Approx::Sin,
        _ => Approx::Cos,
    };
    let seed = c.perturb;
    Ok(Exec::Alu(map1(
        d,
        s,
        move |x: f32| if ftz { flush(f.value(flush(x), 0.0, seed)) } else { f.value(x, 0.0, seed) },
    )))
}

fn sign(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
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
