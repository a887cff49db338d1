//! Arithmetic as the PTX ISA rounds it (8.7.3 to 9.7.5): directed modes, fused products, narrow formats.

use half::{bf16, f16};

/// A rounding mode of floating-point results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// `.rn`: nearest, ties to even.
    Nearest,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

impl Round {
    /// The mode that a modifier names.
    pub fn named(s: &str) -> Option<Round> {
        Some(match s {
            "rn" => Round::Nearest,
            "rz" => Round::Zero,
            "rm" => Round::Down,
            "rp" => Round::Up,
            _ => return None,
        })
    }
}

/// `a + b` in f64, rounded to odd: rounding that once more to f32 or narrower cannot err (f64 has 2·24+2 bits and more).
fn sum_odd(a: f64, b: f64) -> f64 {
    let r = a + b;
    if !r.is_finite() {
        return r;
    }
    let t = r - a;
    let e = (a - (r - t)) + (b - t);
    if e == 0.0 || r.to_bits() & 1 == 1 {
        r
    } else if e > 0.0 {
        r.next_up()
    } else {
        r.next_down()
    }
}

/// An f64 to f32 in any mode; correct for values rounded to odd.
pub fn to_f32(x: f64, mode: Round) -> f32 {
    let y = x as f32;
    let back = f64::from(y);
    match mode {
        Round::Nearest => y,
        _ if x.is_nan() || back == x => y,
        Round::Zero if back.abs() > x.abs() => {
            if x > 0.0 {
                y.next_down()
            } else {
                y.next_up()
            }
        }
        Round::Down if back > x => y.next_down(),
        Round::Up if back < x => y.next_up(),
        _ => y,
    }
}

/// Zero with the sign that the mode gives an exact cancellation.
fn zero_sum(r: f32, a: f64, b: f64, mode: Round) -> f32 {
    // x + -x is -0 only towards minus infinity; equal signs keep theirs in every mode
    if r == 0.0 && a == -b && mode == Round::Down && !(a == 0.0 && a.is_sign_positive() && b.is_sign_positive()) {
        -0.0
    } else {
        r
    }
}

/// `a + b`, rounded once.
pub fn add32(a: f32, b: f32, mode: Round) -> f32 {
    if mode == Round::Nearest {
        return a + b;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    zero_sum(to_f32(sum_odd(a, b), mode), a, b, mode)
}

/// `a · b`, rounded once: the product is exact in f64 but below its normal range, which no two f32 reach.
pub fn mul32(a: f32, b: f32, mode: Round) -> f32 {
    if mode == Round::Nearest { a * b } else { to_f32(f64::from(a) * f64::from(b), mode) }
}

/// `a · b + c`, rounded once.
pub fn fma32(a: f32, b: f32, c: f32, mode: Round) -> f32 {
    if mode == Round::Nearest {
        return a.mul_add(b, c);
    }
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    zero_sum(to_f32(sum_odd(p, c), mode), p, c, mode)
}

/// `a / b`, rounded once; towards a direction by the sign of the exact remainder.
pub fn div32(a: f32, b: f32, mode: Round) -> f32 {
    if mode == Round::Nearest {
        return a / b;
    }
    let (x, y) = (f64::from(a), f64::from(b));
    to_f32(odd_by(x / y, |q| (-q).mul_add(y, x) * y.signum()), mode)
}

/// `√a`, rounded once.
pub fn sqrt32(a: f32, mode: Round) -> f32 {
    if mode == Round::Nearest {
        return a.sqrt();
    }
    let x = f64::from(a);
    to_f32(odd_by(x.sqrt(), |q| (-q).mul_add(q, x)), mode)
}

/// Moves a result to the odd neighbour on the side its error points to.
fn odd_by(q: f64, error: impl Fn(f64) -> f64) -> f64 {
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    let e = error(q);
    if e == 0.0 || e.is_nan() || q.to_bits() & 1 == 1 {
        q
    } else if e > 0.0 {
        q.next_up()
    } else {
        q.next_down()
    }
}

/// The neighbour of a nearest result that a mode asks for; `error` is the exact value's distance from it, in sign.
fn directed64(q: f64, error: f64, mode: Round) -> f64 {
    let down = match mode {
        Round::Nearest => return q,
        Round::Zero => q > 0.0,
        Round::Down => true,
        Round::Up => false,
    };
    match (down, error) {
        _ if !q.is_finite() || error.is_nan() || error == 0.0 => q,
        (true, e) if e < 0.0 => q.next_down(),
        (false, e) if e > 0.0 => q.next_up(),
        _ => q,
    }
}

/// `a + b` in f64 in any mode.
pub fn add64(a: f64, b: f64, mode: Round) -> f64 {
    let r = a + b;
    if r == 0.0 && a == -b && mode == Round::Down && !(a == 0.0 && a.is_sign_positive() && b.is_sign_positive()) {
        return -0.0;
    }
    let t = r - a;
    directed64(r, (a - (r - t)) + (b - t), mode)
}

/// `a · b` in f64 in any mode.
pub fn mul64(a: f64, b: f64, mode: Round) -> f64 {
    directed64(a * b, a.mul_add(b, -(a * b)), mode)
}

/// `a / b` in f64 in any mode.
pub fn div64(a: f64, b: f64, mode: Round) -> f64 {
    let q = a / b;
    directed64(q, (-q).mul_add(b, a) * b.signum(), mode)
}

/// `√a` in f64 in any mode.
pub fn sqrt64(a: f64, mode: Round) -> f64 {
    let q = a.sqrt();
    directed64(q, (-q).mul_add(q, a), mode)
}

/// The value of a byte of 8 bits: sign, 4 of exponent and 3 of fraction (E4M3: one NaN, no infinity), or 5 and 2 (E5M2).
pub fn from_fp8(b: u8, e5m2: bool) -> f32 {
    if e5m2 {
        return f16::from_bits(u16::from(b) << 8).to_f32();
    }
    let (e, f) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    let v = match (e, b & 7) {
        (15, 7) => f32::NAN,
        (0, _) => f * 2f32.powi(-9),
        _ => (1.0 + f / 8.0) * 2f32.powi(e - 7),
    };
    if b >> 7 == 1 { -v } else { v }
}

/// The nearest byte, ties to even; what is too large becomes the largest, NaN 0x7F.
pub fn to_fp8(x: f32, e5m2: bool) -> u8 {
    if x.is_nan() {
        return 0x7F;
    }
    let (fraction, least, top) = if e5m2 { (2, -14, 0x7B) } else { (3, -6, 0x7E) };
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let a = f64::from(x.abs());
    if a == 0.0 || a > 1e6 {
        return sign | if a == 0.0 { 0 } else { top as u8 };
    }
    let e = ((a.to_bits() >> 52) as i32 - 1023).max(least);
    // in units of the last place; one too many carries into the exponent by itself
    let units = (a * 2f64.powi(fraction - e)).round_ties_even() as i64;
    let code = units + (i64::from(e - least) << fraction);
    sign | code.min(top) as u8
}

/// Subnormal numbers become zeros of their sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7F80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// `.sat`: into [0, 1], NaN to +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The NaN that results of arithmetic have on the device.
pub const NAN32: f32 = f32::from_bits(0x7FFF_FFFF);

/// `min` (9.7.3.11): the other one if one is NaN, and -0 below +0.
#[inline(always)]
pub fn min32(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => NAN32,
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() | b.to_bits()),
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

/// `max`, as [`min32`].
#[inline(always)]
pub fn max32(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => NAN32,
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    }
}

/// `min` in f64.
pub fn min64(a: f64, b: f64) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f64::from_bits(a.to_bits() | b.to_bits()),
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

/// `max` in f64.
pub fn max64(a: f64, b: f64) -> f64 {
    -min64(-a, -b)
}

/// f32 to bf16: nearest even or towards zero; NaN is 0x7FFF (9.7.9.21).
#[inline(always)]
pub fn to_bf16(x: f32, mode: Round) -> bf16 {
    let u = x.to_bits();
    bf16::from_bits(if x.is_nan() {
        0x7FFF
    } else if mode == Round::Zero {
        (u >> 16) as u16
    } else {
        (u.wrapping_add(0x7FFF + (u >> 16 & 1)) >> 16) as u16
    })
}

/// f32 to f16: nearest even or towards zero; NaN is 0x7FFF.
pub fn to_f16(x: f32, mode: Round) -> f16 {
    if x.is_nan() {
        return f16::from_bits(0x7FFF);
    }
    let y = f16::from_f32(x);
    if mode == Round::Zero && y.to_f32().abs() > x.abs() { f16::from_bits(y.to_bits() - 1) } else { y }
}

/// An f64 rounded to odd to f32 first, so that the rounding to a narrow format is the only one.
fn odd32(x: f64) -> f32 {
    let z = to_f32(x, Round::Zero);
    if f64::from(z) != x && z.is_finite() { f32::from_bits(z.to_bits() | 1) } else { z }
}

/// A narrow format that sums and products of are rounded to once.
pub trait Narrow: Copy {
    /// Its value.
    fn wide(self) -> f32;
    /// The nearest to a value.
    fn nearest(x: f64) -> Self;
}

impl Narrow for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn nearest(x: f64) -> bf16 {
        to_bf16(odd32(x), Round::Nearest)
    }
}

impl Narrow for f16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn nearest(x: f64) -> f16 {
        to_f16(odd32(x), Round::Nearest)
    }
}

/// `a · b + c` in a narrow format, rounded once.
pub fn fma_narrow<T: Narrow>(a: T, b: T, c: T) -> T {
    T::nearest(sum_odd(f64::from(a.wide()) * f64::from(b.wide()), f64::from(c.wide())))
}

/// `a + b` in a narrow format, rounded once.
pub fn add_narrow<T: Narrow>(a: T, b: T) -> T {
    T::nearest(sum_odd(f64::from(a.wide()), f64::from(b.wide())))
}

/// `a · b` in a narrow format, rounded once.
pub fn mul_narrow<T: Narrow>(a: T, b: T) -> T {
    T::nearest(f64::from(a.wide()) * f64::from(b.wide()))
}

/// An approximate function with the bound of the ISA: relative unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Approx {
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Tanh,
    Sin,
    Cos,
    Div,
}

impl Approx {
    /// The value in f64, to be rounded once: inside of every bound.
    pub fn exact(self, x: f64, y: f64) -> f64 {
        match self {
            Approx::Ex2 => x.exp2(),
            Approx::Lg2 => x.log2(),
            Approx::Rcp => 1.0 / x,
            Approx::Rsqrt => 1.0 / x.sqrt(),
            Approx::Sqrt => x.sqrt(),
            Approx::Tanh => x.tanh(),
            Approx::Sin => x.sin(),
            Approx::Cos => x.cos(),
            Approx::Div => x / y,
        }
    }

    /// The error allowed around a value at an argument, absolute (9.7.3).
    pub fn bound(self, x: f64, value: f64) -> f64 {
        let v = value.abs();
        match self {
            Approx::Ex2 | Approx::Div => 2.0 * ulp(v),
            Approx::Rcp => ulp(v),
            Approx::Lg2 if x > 0.5 && x < 2.0 => 2f64.powi(-22),
            Approx::Lg2 => v * 2f64.powi(-22),
            Approx::Rsqrt => v * 2f64.powf(-22.9),
            Approx::Sqrt => v * 2f64.powi(-23),
            Approx::Tanh => v * 2f64.powi(-11),
            Approx::Sin | Approx::Cos => 2f64.powf(-20.5),
        }
    }

    /// The value, moved by a share of the bound that a hash of the argument draws; exact where `seed` is none.
    pub fn value(self, x: f32, y: f32, seed: Option<u64>) -> f32 {
        let exact = self.exact(f64::from(x), f64::from(y));
        let Some(seed) = seed else { return exact as f32 };
        if !exact.is_finite() || exact == 0.0 {
            return exact as f32;
        }
        let h = mix(seed ^ u64::from(x.to_bits()) << 32 ^ u64::from(y.to_bits()));
        // the final rounding takes half a unit in the last place of the bound
        let bound = self.bound(f64::from(x), exact);
        let room = (bound - ulp(exact.abs() + bound) / 2.0).max(0.0);
        (exact + room * ((h >> 11) as f64 * 2f64.powi(-52) - 1.0)) as f32
    }
}

/// The distance of f32 values around a positive number.
fn ulp(v: f64) -> f64 {
    let e = ((v.to_bits() >> 52) as i32 - 1023).max(-126);
    2f64.powi(e - 23)
}

/// A hash of 64 bits (the finaliser of SplitMix64).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directed results enclose the exact value and are neighbours or equal; nearest lies between.
    #[test]
    fn directed_sums_products_and_quotients_enclose_the_exact_value() {
        let mut s = 1u64;
        let mut draw = || {
            s = mix(s);
            f32::from_bits((s as u32 & 0x807F_FFFF) | (100 + (s >> 40) as u32 % 50) << 23)
        };
        for _ in 0..20_000 {
            let (a, b, c) = (draw(), draw(), draw());
            type Op = fn(f32, f32, f32, Round) -> f32;
            let ops: [Op; 5] = [
                |a, b, _, m| add32(a, b, m),
                |a, b, _, m| mul32(a, b, m),
                fma32,
                |a, b, _, m| div32(a, b, m),
                |a, _, _, m| sqrt32(a.abs(), m),
            ];
            for f in ops {
                let (down, near, up, zero) = (
                    f(a, b, c, Round::Down),
                    f(a, b, c, Round::Nearest),
                    f(a, b, c, Round::Up),
                    f(a, b, c, Round::Zero),
                );
                assert!(down == up || down.next_up() == up, "{a} {b} {c}: {down} {up}");
                assert!(near == down || near == up);
                assert_eq!(zero, if near > 0.0 { down } else { up });
            }
        }
    }

    #[test]
    fn signs_of_zeros_and_nan_follow_the_isa() {
        assert_eq!(min32(0.0, -0.0).to_bits(), 0x8000_0000);
        assert_eq!(max32(-0.0, 0.0).to_bits(), 0);
        assert_eq!(min32(f32::NAN, 2.0), 2.0);
        assert_eq!(add32(1.0, -1.0, Round::Down).to_bits(), 0x8000_0000);
        assert_eq!(add32(0.0, 0.0, Round::Down).to_bits(), 0);
        assert_eq!(saturate(f32::NAN), 0.0);
        assert_eq!(to_bf16(f32::NAN, Round::Nearest).to_bits(), 0x7FFF);
        assert_eq!(to_bf16(f32::MAX, Round::Nearest).to_bits(), 0x7F80);
        assert_eq!(to_f16(65519.9, Round::Zero).to_bits(), 0x7BFF);
    }

    /// All ties and near-ties of sums of two bf16, against the definition in f64.
    #[test]
    fn narrow_sums_are_rounded_once() {
        for a in (0x3F00u16..0x4100).step_by(7) {
            for b in (0x3000u16..0x4200).step_by(13) {
                let (a, b) = (bf16::from_bits(a), bf16::from_bits(b));
                let got = add_narrow(a, b).to_f64();
                let exact = a.to_f64() + b.to_f64();
                for near in [got * (1.0 + 2f64.powi(-8)), got * (1.0 - 2f64.powi(-8))] {
                    assert!((got - exact).abs() <= (bf16::from_f64(near).to_f64() - exact).abs());
                }
            }
        }
    }

    /// The bounds of the ISA (9.7.3), each by itself and over the range it is given for.
    #[test]
    fn perturbed_approximations_stay_inside_their_bounds() {
        let mut s = 3u64;
        for n in 0..200_000u64 {
            s = mix(s);
            let x = f32::from_bits(s as u32 & 0x7FFF_FFFF);
            let y = f32::from_bits((s >> 32) as u32 & 0x807F_FFFF | (1 + (s >> 55) as u32 % 252) << 23);
            let small = (s % 12_566_370) as f32 * 1e-6 - std::f32::consts::TAU;
            if !x.is_finite() {
                continue;
            }
            for f in [
                Approx::Ex2,
                Approx::Lg2,
                Approx::Rcp,
                Approx::Rsqrt,
                Approx::Sqrt,
                Approx::Tanh,
                Approx::Sin,
                Approx::Cos,
                Approx::Div,
            ] {
                let x = match f {
                    Approx::Ex2 => small * 20.0,
                    Approx::Sin | Approx::Cos => small,
                    _ => x,
                };
                let exact = f.exact(x.into(), y.into());
                let (lost, got) = (exact.abs(), f64::from(f.value(x, y, Some(n))));
                if !exact.is_finite() || lost > f32::MAX.into() || exact == 0.0 {
                    continue;
                }
                let spacing = f64::from((lost as f32).next_up()) - f64::from((lost as f32).next_down());
                let bound = match f {
                    // a binade's edge has two spacings: the wider one counts
                    Approx::Ex2 | Approx::Div => spacing,
                    Approx::Rcp => spacing / 2.0,
                    Approx::Lg2 if x > 0.5 && x < 2.0 => 2f64.powi(-22),
                    Approx::Lg2 => lost * 2f64.powi(-22),
                    Approx::Rsqrt => lost * 2f64.powf(-22.9),
                    Approx::Sqrt => lost * 2f64.powi(-23),
                    Approx::Tanh => lost * 2f64.powi(-11),
                    Approx::Sin | Approx::Cos => 2f64.powf(-20.5),
                };
                // results below the normal range have fewer digits than any relative bound asks for
                let bound = bound.max(2f64.powi(-149));
                assert!((got - exact).abs() <= bound * (1.0 + 1e-9), "{f:?} {x} {y}: {got} for {exact}");
            }
        }
    }

    #[test]
    fn bytes_that_are_floats_come_back_and_saturate() {
        for e5m2 in [false, true] {
            for b in 0..=255u8 {
                let v = from_fp8(b, e5m2);
                if v.is_finite() {
                    assert_eq!(to_fp8(v, e5m2), b, "{b:#x} of {e5m2}");
                }
            }
            let (largest, code) = if e5m2 { (57344.0, 0x7B) } else { (448.0, 0x7E) };
            assert_eq!((to_fp8(largest * 9.0, e5m2), to_fp8(f32::NEG_INFINITY, e5m2)), (code, code | 0x80));
            assert_eq!((from_fp8(code, e5m2), to_fp8(f32::NAN, e5m2)), (largest, 0x7F));
        }
        // ties go to even: between 8 and 9, and between 9 and 10, in E4M3
        assert_eq!((from_fp8(to_fp8(8.5, false), false), from_fp8(to_fp8(9.5, false), false)), (8.0, 10.0));
    }

    #[test]
    fn directed_results_in_f64_enclose_the_exact_one() {
        for (a, b) in [(1.0, 3.0), (0.1, 0.7), (-1.0, 3.0), (1e300, 7.0), (5.0, -0.3)] {
            for f in [add64, mul64, div64, |a: f64, _: f64, m| sqrt64(a.abs() + 2.0, m)] {
                let (down, near, up) = (f(a, b, Round::Down), f(a, b, Round::Nearest), f(a, b, Round::Up));
                assert!(down == up || down.next_up() == up, "{a} {b}: {down} {up}");
                assert!(near == down || near == up);
                assert_eq!(f(a, b, Round::Zero), if near > 0.0 { down } else { up });
            }
        }
    }
}
