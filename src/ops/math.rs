//! Elementary functions as fixed sequences of exactly rounded operations, without branches or tables: a loop over them
//! becomes vector code, and a result depends on nothing but the argument (the system's own differ between machines).

/// Defines a function whose loops are compiled a second time for 512-bit vectors, which are used where they exist.
/// The results are the same bits, because lanes are independent.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
                fn with_avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                    // SAFETY: the features are there; every processor with the other two has avx512f.
                    return unsafe { with_avx512($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use wide;

/// `e^x` to 1 unit in the last place. Infinite above 88.7228, zero below -87.3365 (no denormals), NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding this rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; products of the first with small integers are exact.
    const LN2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    const LARGEST: f32 = 88.722_83;
    const SMALLEST: f32 = -87.336_54;

    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = (-n).mul_add(LN2[1], (-n).mul_add(LN2[0], x));
    // Minimax on |r| <= ln(2)/2 (Cephes, expf).
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r * r, r) + 1.0;
    // Times 2^n: n is added to the exponent.
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let y = if x > LARGEST { f32::INFINITY } else { y };
    let y = if x < SMALLEST { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// The natural logarithm of a positive normal number to 1 unit in the last place, by operations that are each rounded once.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    /// (ln(1 + f) - f + f²/2)/f³ in powers of f, minimax on 1/√2 <= 1 + f < √2.
    const LN: [u32; 8] =
        [0x3EAA_AAAA, 0xBE80_0114, 0x3E4C_D004, 0xBE2A_3922, 0x3E11_6D11, 0xBE06_C2A9, 0x3E02_ADA3, 0xBD9C_5A66];
    /// ln 2 in two parts; products of the first with small integers are exact.
    const LN2: [f32; 2] = [355.0 / 512.0, f32::from_bits(0xB95E_8083)];
    let bits = x.to_bits();
    let e = (bits.wrapping_sub(0x3F35_04F3) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((e << 23) as u32)) - 1.0;
    let (s, k) = (f * f, e as f32);
    let mut y = f * (s * horner(&LN, f));
    y += k * LN2[1];
    y -= 0.5 * s;
    y += f;
    y + k * LN2[0]
}

/// `p(x)` for coefficients as bits, lowest power first: a multiplication and an addition a step, never fused.
#[inline(always)]
pub(super) fn horner<const N: usize>(coefficients: &[u32; N], x: f32) -> f32 {
    let mut p = f32::from_bits(coefficients[N - 1]);
    for k in (0..N - 1).rev() {
        p = p * x + f32::from_bits(coefficients[k]);
    }
    p
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent to 3 units in the last place.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let large = (1.0 - 2.0 / (1.0 + exp(2.0 * a))).copysign(x);
    // Minimax on |x| < 0.625, where the other form loses digits (Cephes, tanhf).
    let s = x * x;
    let mut p = -5.704_988_7e-3f32;
    p = p.mul_add(s, 2.063_909e-2);
    p = p.mul_add(s, -5.373_971_4e-2);
    p = p.mul_add(s, 1.333_144_1e-1);
    p = p.mul_add(s, -3.333_328e-1);
    let small = (p * s).mul_add(x, x);
    if a < 0.625 { small } else { large }
}

/// The error function to 2 units in the last place (the two forms of N. Juffa's `erff`).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (a, s) = (x.abs(), x * x);
    let p = (-1.728_534_7e-5f32).mul_add(a, 3.831_971_3e-4);
    let q = (-3.883_964_4e-3f32).mul_add(a, 2.425_462_2e-2);
    let mut p = p.mul_add(s, q);
    p = p.mul_add(a, -1.067_778_8e-1);
    p = p.mul_add(a, -6.348_467e-1);
    p = p.mul_add(a, -1.287_175_1e-1);
    let large = (1.0 - exp(p.mul_add(a, -a))).copysign(x);
    let mut p = -5.967_617e-4f32;
    p = p.mul_add(s, 4.991_194_2e-3);
    p = p.mul_add(s, -2.676_813_5e-2);
    p = p.mul_add(s, 1.128_199_3e-1);
    p = p.mul_add(s, -3.761_253_4e-1);
    p = p.mul_add(s, 1.283_791_7e-1);
    let small = p.mul_add(x, x);
    if a > 0.927_734_4 { large } else { small }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place between `got` and the exact `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        let ulp = f64::from(f32::from_bits(near.abs().to_bits() + 1)) - f64::from(near.abs());
        (f64::from(got) - want).abs() / ulp
    }

    /// Largest error of `f` over a dense grid on `from..to`, in units in the last place and absolute.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> (f64, f64) {
        const STEPS: i32 = 400_000;
        let mut worst = (0f64, 0f64);
        for i in 0..=STEPS {
            let x = from + (to - from) * (i as f32 / STEPS as f32);
            let (got, want) = (f(x), exact(f64::from(x)));
            worst = (worst.0.max(ulps(got, want)), worst.1.max((f64::from(got) - want).abs()));
        }
        worst
    }

    /// erf in f64: a series of positive terms, Abramowitz and Stegun 7.1.6.
    fn erf64(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }

    #[test]
    fn every_function_is_within_its_error_of_the_f64_value() {
        let sigmoid64 = |x: f64| 1.0 / (1.0 + (-x).exp());
        let checks = [
            ("exp", worst(exp, f64::exp, -87.336_54, 88.722_83), 1.0),
            ("exp", worst(exp, f64::exp, -1.0, 1.0), 1.0),
            ("ln", worst(ln, f64::ln, 1e-30, 1e30), 1.0),
            ("ln", worst(ln, f64::ln, 0.5, 2.0), 1.0),
            ("sigmoid", worst(sigmoid, sigmoid64, -80.0, 80.0), 3.0),
            ("tanh", worst(tanh, f64::tanh, -10.0, 10.0), 3.0),
            ("tanh", worst(tanh, f64::tanh, -1e-3, 1e-3), 3.0),
            ("erf", worst(erf, erf64, -5.0, 5.0), 2.0),
            ("erf", worst(erf, erf64, -1e-3, 1e-3), 2.0),
        ];
        for (name, (ulps, absolute), bound) in checks {
            assert!(ulps <= bound, "{name}: {ulps} ulp, {absolute:e} absolute");
        }
    }

    #[test]
    fn limits_and_nan_come_out_exactly() {
        assert_eq!([exp(f32::NEG_INFINITY), exp(-1e30), exp(-87.4), exp(0.0)], [0.0, 0.0, 0.0, 1.0]);
        assert_eq!([exp(88.73), exp(1e30), exp(f32::INFINITY)], [f32::INFINITY; 3]);
        assert!(exp(88.722_83).is_finite() && exp(-87.336_54).is_normal());
        for f in [sigmoid, tanh, erf] {
            assert_eq!(f(f32::INFINITY), 1.0);
            assert_eq!(f(1e4), 1.0);
        }
        assert_eq!([sigmoid(f32::NEG_INFINITY), tanh(f32::NEG_INFINITY), erf(f32::NEG_INFINITY)], [0.0, -1.0, -1.0]);
        assert_eq!([sigmoid(0.0), tanh(0.0), erf(0.0)], [0.5, 0.0, 0.0]);
        for f in [exp, sigmoid, tanh, erf] {
            assert!(f(f32::NAN).is_nan());
        }
    }
}
