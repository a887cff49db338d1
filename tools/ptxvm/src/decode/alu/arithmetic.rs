//! Integers, and which kind of number an instruction is of (PTX ISA 9.7.1 and 9.7.3).

use super::*;

pub(super) fn arithmetic(c: &mut Context, i: &Instruction) -> Found<Exec> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    if ty.float() {
        let apply = match ty {
            Type::F32 => float::float32(c, i, &mut m)?,
            Type::F64 => float::float64(c, i, &mut m)?,
            Type::F16 | Type::F16x2 => float::narrow::<f16>(c, i, &mut m, ty)?,
            _ => float::narrow::<bf16>(c, i, &mut m, ty)?,
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

/// Integers as wide as a register, with sums that leave a carry.
trait Carries: Lane {
    fn add(self, y: Self, carry: bool) -> (Self, bool);
    fn not(self) -> Self;
    fn product(self, y: Self, hi: bool, signed: bool) -> Self;
}

macro_rules! carries {
    ($($t:ty, $s:ty, $wide:ty;)*) => {$(
        impl Carries for $t {
            fn add(self, y: $t, carry: bool) -> ($t, bool) {
                let (r, a) = self.overflowing_add(y);
                let (r, b) = r.overflowing_add(carry.into());
                (r, a | b)
            }
            fn not(self) -> $t {
                !self
            }
            fn product(self, y: $t, hi: bool, signed: bool) -> $t {
                match (hi, signed) {
                    (false, _) => self.wrapping_mul(y),
                    (true, false) => ((self as $wide * y as $wide) >> <$t>::BITS) as $t,
                    (true, true) => ((self as $s as i128 * y as $s as i128) >> <$t>::BITS) as $t,
                }
            }
        }
    )*};
}

carries! { u32, i32, u64; u64, i64, u128; }

/// What is done with a carry.
#[derive(Clone, Copy)]
struct Carry {
    sub: bool,
    /// `mad`: the upper half of the product.
    product: Option<bool>,
    signed: bool,
    reads: bool,
    writes: bool,
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc` and `madc` (9.7.2): the carry is a flag of each lane.
pub(super) fn carried(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let (writes, hi, lo) = (m.take("cc"), m.take("hi"), m.take("lo"));
    m.done()?;
    let (mad, reads) = (i.op.starts_with("mad"), i.op.ends_with('c'));
    if !matches!(ty, Type::U32 | Type::S32 | Type::B32 | Type::U64 | Type::S64 | Type::B64) || mad && hi == lo {
        return Err("expected an integer of 32 or 64 bits, and .hi or .lo of a product".into());
    }
    let a = args(c, i, ty, &[ty; 3][..if mad { 3 } else { 2 }])?;
    let flag = c.carry();
    if reads {
        c.reads.push(flag);
    }
    if writes {
        c.writes.push(flag);
    }
    let sub = i.op.starts_with("sub");
    let how = Carry { sub, product: mad.then_some(hi), signed: ty.signed(), reads, writes };
    Ok(if ty.bits() == 64 { carry_in::<u64>(a, flag, how) } else { carry_in::<u32>(a, flag, how) })
}

fn carry_in<T: Carries>(a: Args, flag: Reg, how: Carry) -> Apply {
    Box::new(move |r, mask| {
        let [x, y, z] = [0, 1, 2].map(|n| T::get(r, a.s[if n == 2 && how.product.is_none() { 0 } else { n }].row));
        let (before, mut after, mut out) = (r.flag[flag.row as usize], 0u32, x);
        for l in 0..LANES {
            let carry = how.reads && before >> l & 1 == 1;
            let (v, over) = match how.product {
                Some(hi) => x[l].product(y[l], hi, how.signed).add(z[l], carry),
                // as devices do it: the carry is there where nothing is borrowed
                None if how.sub => x[l].add(y[l].not(), carry || !how.reads),
                None => x[l].add(y[l], carry),
            };
            out[l] = v;
            after |= u32::from(over) << l;
        }
        T::put(r, a.d.row, &out, mask);
        if how.writes {
            let f = &mut r.flag[flag.row as usize];
            *f = *f & !mask | after & mask;
        }
    })
}

/// `mul24` and `mad24`: products of the lower 24 bits, of which the lower or the upper 32 of 48 bits are kept.
pub(super) fn of_24_bits(c: &mut Context, i: &Instruction) -> Found<Apply> {
    let mut m = Mods::of(i);
    let ty = m.ty()?;
    let (hi, lo) = (m.take("hi"), m.take("lo"));
    m.done()?;
    if hi == lo || !matches!(ty, Type::U32 | Type::S32) {
        return Err("expected .hi or .lo of u32 or s32".into());
    }
    let signed = ty.signed();
    let product = move |x: u32, y: u32| {
        let part = |v: u32| if signed { i64::from((v << 8) as i32 >> 8) } else { i64::from(v & 0xFF_FFFF) };
        ((part(x) * part(y)) >> if hi { 16 } else { 0 }) as u32
    };
    Ok(if i.op == "mul24" {
        let a = args(c, i, ty, &[ty; 2])?;
        map2(a.d, a.s[0], a.s[1], product)
    } else {
        let a = args(c, i, ty, &[ty; 3])?;
        map3(a.d, three(a.s), move |x, y, z: u32| product(x, y).wrapping_add(z))
    })
}
