use super::cpu::{cos_sin, minus_two_ln, normals};
use super::*;
use crate::device::philox::Purpose;
use crate::device::with_threads;

fn stream(key: Key, n: usize) -> Vec<f32> {
    normal(&Device::Cpu, &[key], &[1, n]).to_host()
}

/// The check values of the definition, which CUDA's PTX and numpy agree with.
#[test]
fn numbers_are_those_of_the_definition_bit_for_bit() {
    let bits = |w| (minus_two_ln(w).to_bits(), cos_sin(w).0.to_bits(), cos_sin(w).1.to_bits());
    assert_eq!(bits(1), (0x4205_1592, 0x3F80_0000, 0x34C9_0FDB));
    assert_eq!(bits(0x80_0001), (0x3FB1_7216, 0xBF80_0000, 0xB4C9_0FDB));
    assert_eq!(bits(0xFF_FFFF), (0x3400_0000, 0x3F80_0000, 0xB4C9_0FDB));
    let key = Key::new(7, Purpose::InitialLatent);
    assert_eq!(key.words(), [0x623A_A92D, 0xEC9F_0537, 0xBB54_C43B, 0xFEA6_ABCA]);
    let first: Vec<u32> = stream(key, 8).iter().map(|v| v.to_bits()).collect();
    let want = [0x3F4A_64ED, 0xBE44_6697, 0xBF05_1BD8, 0xBEB3_9C1D, 0xBFA6_6245, 0x3E94_C3B0, 0xC002_30D2, 0xBF96_708F];
    assert_eq!(first, want);
}

#[test]
fn logarithm_and_angle_are_within_their_errors_of_the_f64_values() {
    let ulps = |got: f32, want: f64| {
        let near = (want as f32).abs();
        (f64::from(got) - want).abs() / (f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near))
    };
    for w in (1..1 << 24).step_by(2 * 61) {
        let u = f64::from(w) / f64::from(1 << 24);
        assert!(ulps(minus_two_ln(w), -2.0 * u.ln()) <= 0.87, "ln {w}");
        let ((cos, sin), angle) = (cos_sin(w), std::f64::consts::TAU * u);
        assert!(ulps(cos, angle.cos()) <= 1.7 && ulps(sin, angle.sin()) <= 1.7, "angle {w}");
    }
}

#[test]
fn a_row_is_its_key_alone_at_odd_lengths_in_any_batch_and_for_any_number_of_threads() {
    let key = |i: u32| Key { prompt: i, ..Key::new(7, Purpose::ForwardNoise) };
    let keys: Vec<Key> = (0..9).map(key).collect();
    for n in [1, 3, 64, 131] {
        let run = |threads| with_threads(threads, || normal(&Device::Cpu, &keys, &[9, n]).to_host()).unwrap();
        let whole = run(1);
        assert_eq!(whole, run(3));
        for (i, row) in whole.chunks(n).enumerate() {
            assert_eq!(row, stream(keys[i], n));
            assert_eq!(row, &stream(keys[i], n + 5)[..n]);
        }
    }
    let mut later = [0.0; 9];
    normals(&mut later, keys[2].words(), 5);
    assert_eq!(later, stream(keys[2], 29)[20..]);
}

#[test]
fn normal_numbers_have_mean_zero_variance_one_and_no_correlation_between_streams() {
    let n = 1 << 16;
    let key = Key::new(7, Purpose::InitialLatent);
    let (a, b) = (stream(key, n), stream(Key { prompt: 1, ..key }, n));
    let mean = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
    // Four standard errors of each statistic.
    let se = 4.0 / (n as f64).sqrt();
    assert!(mean(&|i| f64::from(a[i])).abs() < se);
    assert!((mean(&|i| f64::from(a[i]).powi(2)) - 1.0).abs() < se * 2f64.sqrt());
    assert!(mean(&|i| f64::from(a[i]) * f64::from(b[i])).abs() < se);
}
