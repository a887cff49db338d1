use crate::device::Tensor;

pub(super) fn forward(out: &mut Tensor, timestep: &[f32]) {
    let channels = out.width();
    let half = channels / 2;
    for (row, t) in out.host_mut().chunks_exact_mut(channels).zip(timestep) {
        for i in 0..half {
            // The exponent is rounded as PyTorch rounds it: times t up to 1000, that is seen in the velocity.
            let exponent = -LN_10000 * i as f32 / half as f32;
            let frequency = exp(f64::from(exponent)) as f32;
            let (sin, cos) = sin_cos(f64::from(t * frequency));
            row[i] = cos as f32;
            row[half + i] = sin as f32;
        }
    }
}

/// ln 10000, rounded.
const LN_10000: f32 = 9.210_340_5;

/// `p(x)` with `p(0)` first: a multiplication and an addition a step.
fn horner<const N: usize>(coefficients: [f64; N], x: f64) -> f64 {
    coefficients.into_iter().rev().fold(0.0, |p, c| p * x + c)
}

/// `1/first!, 1/(first + step)!, ...`, with alternating signs if `step` is 2.
const fn taylor<const N: usize>(first: usize, step: usize) -> [f64; N] {
    let mut out = [0.0; N];
    let (mut i, mut n, mut factorial) = (0, 0, 1.0);
    while i < N {
        while n < first + i * step {
            n += 1;
            factorial *= n as f64;
        }
        out[i] = if step == 2 && i % 2 == 1 { -1.0 / factorial } else { 1.0 / factorial };
        i += 1;
    }
    out
}

/// `e^x` for moderate `x` to within 1e-15 of itself.
pub(super) fn exp(x: f64) -> f64 {
    /// ln 2 in two parts; products of the first with small integers are exact.
    const LN2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2[0]) - n * LN2[1];
    horner(taylor::<14>(0, 1), r) * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Sine and cosine of up to a few thousand to within 1e-14.
pub(super) fn sin_cos(x: f64) -> (f64, f64) {
    /// π/2 in two parts; products of the first with small integers are exact.
    const HALF_PI: [f64; 2] = [1.570_796_326_734_125_6, 6.077_100_506_506_192e-11];
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = (x - n * HALF_PI[0]) - n * HALF_PI[1];
    let z = r * r;
    let (sin, cos) = (r * horner(taylor::<9>(1, 2), z), horner(taylor::<10>(0, 2), z));
    match n as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
