//! Floating-point numbers of 64, 32 and 16 bits, and functions of one (PTX ISA 9.7.3 and 9.7.4).

use super::*;

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

pub(super) fn float32(c: &mut Context, i: &Instruction, m: &mut Mods) -> Found<Apply> {
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

pub(super) fn float64(c: &mut Context, i: &Instruction, m: &mut Mods) -> Found<Apply> {
    let ty = Type::F64;
    let mode = m.find(Round::named).unwrap_or(Round::Nearest);
    if mode != Round::Nearest && matches!(i.op.as_str(), "fma" | "mad") {
        return Err(format!("rounding {mode:?} of a fused product in f64 is not supported"));
    }
    let two = |c: &mut Context, f: fn(f64, f64) -> f64| -> Found<Apply> {
        let a = args(c, i, ty, &[ty; 2])?;
        Ok(map2(a.d, a.s[0], a.s[1], f))
    };
    let rounded = |c: &mut Context, f: fn(f64, f64, Round) -> f64| -> Found<Apply> {
        let a = args(c, i, ty, &[ty; 2])?;
        Ok(map2(a.d, a.s[0], a.s[1], move |x, y| f(x, y, mode)))
    };
    match i.op.as_str() {
        "add" => rounded(c, add64),
        "sub" => rounded(c, |x, y, mode| add64(x, -y, mode)),
        "mul" => rounded(c, mul64),
        "div" => rounded(c, div64),
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
pub(super) trait Half: Narrow + Lane {
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
pub(super) fn narrow<T: Half>(c: &mut Context, i: &Instruction, m: &mut Mods, ty: Type) -> Found<Apply> {
    let pair = ty.bits() == 32;
    if let Some(r) = m.find(Round::named)
        && r != Round::Nearest
    {
        return Err(format!("rounding {r:?} of {ty:?} is not supported"));
    }
    let relu = m.take("relu");
    let nan = m.take("NaN");
    if m.take("ftz") || m.take("sat") {
        return Err(format!("`.ftz` and `.sat` of {ty:?} are not supported"));
    }
    if nan && !matches!(i.op.as_str(), "min" | "max") {
        return Err("`.NaN` is for min and max".into());
    }
    fn pick<T: Half>(x: T, y: T, max: bool) -> T {
        let v = if max { max32(x.wide(), y.wide()) } else { min32(x.wide(), y.wide()) };
        T::nearest(f64::from(v))
    }
    fn strict<T: Half>(x: T, y: T, max: bool) -> T {
        if x.wide().is_nan() || y.wide().is_nan() { T::of(0x7FFF) } else { pick(x, y, max) }
    }
    let two: fn([T; 2]) -> T = match i.op.as_str() {
        "add" => |[x, y]| add_narrow(x, y),
        "sub" => |[x, y]| add_narrow(x, T::of(y.bits() ^ 0x8000)),
        "mul" => |[x, y]| mul_narrow(x, y),
        "min" if nan => |[x, y]| strict(x, y, false),
        "max" if nan => |[x, y]| strict(x, y, true),
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

/// Functions of one f32 or f64: rounded as written, or approximate.
pub(super) fn unary_float(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let (approx, ftz) = (m.take("approx"), m.take("ftz"));
    let mode = m.find(Round::named);
    m.done()?;
    let a = args(c, i, ty, &[ty])?;
    let (d, s) = (a.d, a.s[0]);
    if ty == Type::F64 {
        return match (i.op.as_str(), mode) {
            ("sqrt", Some(mode)) => Ok(Exec::Alu(map1(d, s, move |x: f64| sqrt64(x, mode)))),
            ("rcp", Some(mode)) => Ok(Exec::Alu(map1(d, s, move |x: f64| div64(1.0, x, mode)))),
            // rough to 20 bits or so on a device: exact here
            ("rcp", None) if approx => Ok(Exec::Alu(map1(d, s, |x: f64| 1.0 / x))),
            ("rsqrt", None) if approx => Ok(Exec::Alu(map1(d, s, |x: f64| 1.0 / x.sqrt()))),
            _ => Err("this form for f64 is not supported".into()),
        };
    }
    if approx && mode.is_none() && matches!(i.op.as_str(), "ex2" | "tanh") {
        let (f, seed) = (if i.op == "ex2" { Approx::Ex2 } else { Approx::Tanh }, c.perturb);
        match ty {
            // relative bounds: 2^-9.9 and 2^-10.987, 2^-7 and 2^-8
            Type::F16 | Type::F16x2 => {
                let bound = 2f64.powf(if f == Approx::Ex2 { -9.9 } else { -10.987 });
                return Ok(Exec::Alu(approximate::<f16>(a, ty, f, bound, seed)));
            }
            Type::Bf16 | Type::Bf16x2 => {
                let bound = 2f64.powi(if f == Approx::Ex2 { -7 } else { -8 });
                return Ok(Exec::Alu(approximate::<bf16>(a, ty, f, bound, seed)));
            }
            _ => {}
        }
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

/// An approximate function of narrow numbers, alone or in pairs: rounded once, or moved by what its bound leaves.
fn approximate<T: Half>(a: Args, ty: Type, f: Approx, bound: f64, seed: Option<u64>) -> Apply {
    // what rounding takes of the bound: half a unit of 11 bits of f16, of 8 of bf16
    let half = if T::of(0x3C00).wide() == 1.0 { 2f64.powi(-11) } else { 2f64.powi(-8) };
    let one = move |[x]: [T; 1]| {
        let exact = f.exact(x.wide().into(), 0.0);
        let moved = match seed {
            Some(seed) if exact.is_finite() => {
                let h = (mix(seed ^ u64::from(x.bits())) >> 11) as f64 * 2f64.powi(-52) - 1.0;
                exact * (1.0 + h * (bound - half).max(0.0))
            }
            _ => exact,
        };
        T::nearest(moved)
    };
    if ty.bits() == 32 {
        map1(a.d, a.s[0], move |x: u32| halves([x], one))
    } else {
        map1(a.d, a.s[0], move |x: T| one([x]))
    }
}
