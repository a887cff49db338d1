//! Conversions, arithmetic, and approximate functions with the bounds of the PTX ISA (9.7.3, 9.7.9.21).

use anyhow::{Result, ensure};
use half::f16;

use super::{Check, floats, given, hash, launch, room, words};
use crate::device::gpu::Grid;
use crate::device::{Device, Tensor};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "conversions", hopper: false, exact: false, run: convert, judge: converted },
    Check { name: "arithmetic", hopper: false, exact: false, run: arithmetic, judge: computed },
    Check { name: "approximate functions", hopper: false, exact: false, run: approximate, judge: approximated },
];

/// Results of each number.
const CONVERSIONS: usize = 15;
const OPERATIONS: usize = 8;
const FUNCTIONS: [&str; 10] = ["ex2.ftz", "ex2", "lg2", "rcp.ftz", "rsqrt", "sqrt", "tanh", "sin", "cos", "div"];

/// Numbers at which rules differ.
const CORNERS: [f32; 24] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    1e-40,
    -1e-40,
    f32::MAX,
    f32::MIN,
    65504.0,
    65520.0,
    2147483648.0,
    -2147483648.0,
    4294967296.0,
    0.99999994,
    8388607.5,
];

/// Any bits: every exponent, infinities and numbers that are none.
fn any(seed: u64, n: usize) -> Vec<f32> {
    let of = |i: usize| match i.checked_sub(CORNERS.len() * CORNERS.len()) {
        // Every corner, beside every one.
        None if seed == 1 => CORNERS[i % CORNERS.len()],
        None => CORNERS[i / CORNERS.len()],
        // Halfway between two halves of f16 and of bf16, now and then.
        Some(i) if i % 8 == 0 => f32::from_bits(hash(seed, i) as u32 & 0xFFFF_F000 | 0x1000),
        Some(i) if i % 8 == 1 => f32::from_bits(hash(seed, i) as u32 & 0xFFFF_0000 | 0x8000),
        Some(i) => f32::from_bits(hash(seed, i) as u32),
    };
    (0..n).map(of).collect()
}

/// Of moderate size, and every fourth of any but the largest and the smallest.
fn moderate(seed: u64, n: usize) -> Vec<f32> {
    let of = |i: usize| {
        let h = hash(seed, i);
        let (least, most) = if i.is_multiple_of(4) { (-60, 61) } else { (-20, 7) };
        let exponent = (h >> 32) as i32 & 0x7FFF;
        let exponent = exponent % (most - least) + least;
        f32::from_bits(h as u32 & 0x807F_FFFF | ((exponent + 127) as u32) << 23)
    };
    (0..n).map(of).collect()
}

fn launched(device: &Device, entry: &str, sources: &[Vec<f32>], each: usize) -> Vec<Tensor> {
    let n = sources[0].len();
    let sources: Vec<_> = sources.iter().map(|s| given(device, bytemuck::cast_slice(s))).collect();
    let mut out = room(device, 4 * each * n);
    let args = sources.iter().map(Tensor::arg).collect::<Vec<_>>();
    launch(device, entry, Grid::flat(n), args.into_iter().chain([out.arg_mut(), (n as u32).into()]));
    vec![out]
}

fn convert(device: &Device, n: usize) -> Vec<Tensor> {
    launched(device, "semantics_convert", &[any(1, n)], CONVERSIONS)
}

fn arithmetic(device: &Device, n: usize) -> Vec<Tensor> {
    launched(device, "semantics_arithmetic", &[any(1, n), any(2, n)], OPERATIONS)
}

fn approximate(device: &Device, n: usize) -> Vec<Tensor> {
    launched(device, "semantics_approximate", &[moderate(3, n), moderate(4, n)], FUNCTIONS.len())
}

/// To bf16: nearest, ties to even; what is no number becomes 0x7FFF.
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7FFF } else { (u64::from(bits) + 0x7FFF + u64::from(bits >> 16 & 1)) as u32 >> 16 }
}

fn half(x: f32) -> u32 {
    if x.is_nan() { 0x7FFF } else { f16::from_f32(x).to_bits().into() }
}

/// To f16, towards zero.
fn half_towards_zero(x: f32) -> u32 {
    let near = half(x);
    let beyond = f16::from_bits(near as u16).to_f32().abs() > x.abs();
    near - u32::from(beyond)
}

/// To ten bits of fraction: nearest, ties away from zero.
fn tf32(x: f32) -> u32 {
    if x.is_finite() { (x.to_bits() + 0x1000) & 0xFFFF_E000 } else { x.to_bits() }
}

fn conversions(x: f32) -> [u32; CONVERSIONS] {
    [
        bf16(x),
        if x.is_nan() { 0x7FFF } else { x.to_bits() >> 16 },
        half(x),
        half_towards_zero(x),
        // The first source is the upper half.
        bf16(x) << 16 | bf16(-0.5 * x),
        half(x) << 16 | half(-0.5 * x),
        x.round_ties_even() as i32 as u32,
        x as i32 as u32,
        x.floor() as i32 as u32,
        x.ceil() as i32 as u32,
        x as u32,
        tf32(x),
        if x > 0.0 { x.min(1.0) } else { 0.0 }.to_bits(),
        x.round_ties_even().to_bits(),
        f16::from_bits(x.to_bits() as u16).to_f32().to_bits(),
    ]
}

/// Results that are f32: what is no number may be any that is none.
fn is_float(column: usize) -> bool {
    matches!(column, 11 | 13 | 14)
}

fn converted(out: &[Vec<u8>], n: usize) -> Result<String> {
    let got = words(&out[0]);
    for (x, got) in any(1, n).into_iter().zip(got.chunks(CONVERSIONS)) {
        for (column, (&got, want)) in got.iter().zip(conversions(x)).enumerate() {
            let none = |bits: u32| f32::from_bits(bits).is_nan();
            let same = got == want || is_float(column) && none(got) && none(want);
            let bits = x.to_bits();
            ensure!(same, "conversion {column} of {x:e} ({bits:#x}) is {got:#x}, expected {want:#x}");
        }
    }
    Ok(format!("{n} numbers"))
}

/// The smaller or the larger; of a number and what is none the number, and -0 is below 0.
fn extreme(a: f32, b: f32, largest: bool) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ => match a.total_cmp(&b).is_lt() == largest {
            true => b,
            false => a,
        },
    }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn computed(out: &[Vec<u8>], n: usize) -> Result<String> {
    let got = floats(&out[0]);
    for ((a, b), got) in any(1, n).into_iter().zip(any(2, n)).zip(got.chunks(OPERATIONS)) {
        let want = [
            a + b,
            a * b,
            a.mul_add(b, -a),
            a / b,
            a.sqrt(),
            extreme(a, b, false),
            extreme(a, b, true),
            flush(flush(a) + flush(b)),
        ];
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            ensure!(same, "operation {i} of {a:e} and {b:e} is {got:e}, expected {want:e}");
        }
    }
    Ok(format!("{n} pairs"))
}

/// The value of a function in f64, and how far from it the ISA lets the result be; nothing where it says nothing.
fn bound(function: usize, a: f64, b: f64) -> Option<(f64, f64)> {
    // The unit in the last place of a normal number.
    let ulp = |y: f64| 2f64.powi((y.abs().log2().floor() as i32).max(-126) - 23);
    let units = |y: f64, n: f64| (y, n * ulp(y));
    let relative = |y: f64, log2: f64| (y, y.abs() * log2.exp2());
    let normal = |y: f64| (2f64.powi(-125)..2f64.powi(127)).contains(&y.abs());
    match function {
        0 | 1 => Some(a.exp2()).filter(|&y| normal(y)).map(|y| units(y, 2.0)),
        2 if a > 0.0 => Some(match a.log2() {
            y if 0.5 < a && a < 2.0 => (y, 2f64.powi(-22)),
            y => relative(y, -22.0),
        }),
        3 => Some(units(1.0 / a, 1.0)),
        4 if a > 0.0 => Some(relative(1.0 / a.sqrt(), -22.9)),
        5 if a > 0.0 => Some(relative(a.sqrt(), -23.0)),
        6 => Some(relative(a.tanh(), -11.0)),
        7 | 8 if a.abs() <= std::f64::consts::TAU => {
            Some((if function == 7 { a.sin() } else { a.cos() }, (-20.5f64).exp2()))
        }
        9 => Some(a / b).filter(|&y| normal(y)).map(|y| units(y, 2.0)),
        _ => None,
    }
}

fn approximated(out: &[Vec<u8>], n: usize) -> Result<String> {
    let got = floats(&out[0]);
    let mut worst = [0f64; FUNCTIONS.len()];
    for ((a, b), got) in moderate(3, n).into_iter().zip(moderate(4, n)).zip(got.chunks(FUNCTIONS.len())) {
        for (i, &got) in got.iter().enumerate() {
            let Some((value, bound)) = bound(i, a.into(), b.into()) else { continue };
            let off = (f64::from(got) - value).abs() / bound;
            // Of a value that is as near to it as an f32 can be it is off by half a unit.
            ensure!(off <= 1.0, "{} of {a:e} and {b:e} is {got:e}, {off:.2} times its bound off", FUNCTIONS[i]);
            worst[i] = worst[i].max(off);
        }
    }
    let worst: Vec<String> = FUNCTIONS.iter().zip(worst).map(|(name, w)| format!("{name} {w:.2}")).collect();
    Ok(format!("{n} numbers; furthest, in parts of the bound: {}", worst.join(", ")))
}
