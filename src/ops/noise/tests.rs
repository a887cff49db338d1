use super::cpu::{cos_sin, minus_two_ln, normals};
use super::*;
use crate::device::philox::Purpose;
use crate::device::{gpu, with_threads};
use crate::ops::testing::{devices, on_vm};

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
    let want = [0x3F4A_64ED, 0xBE44_6697, 0xBF05_1BD8, 0xBEB3_9C1D, 0xBFA6_6245, 0x3E94_C3B0, 0xC002_30D2, 0xBF96_708F];
    for device in devices() {
        let first: Vec<u32> = normal(&device, &[key], &[1, 8]).to_host().iter().map(|v| v.to_bits()).collect();
        assert_eq!(first, want, "{device:?}");
    }
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

#[test]
fn a_kernel_makes_the_cpu_s_bits_at_any_length_and_a_row_is_its_key_alone() {
    let key = |i: u32| Key { prompt: i, ..Key::new(u64::MAX - 7, Purpose::SamplerNoise) };
    let keys: Vec<Key> = (0..9).map(key).collect();
    for n in [1, 3, 4, 7, 64, 1023, 1024, 1025, 4101] {
        let got = on_vm(|device| vec![normal(device, &keys, &[9, n]), normal(device, &keys[4..5], &[1, n])]);
        assert_eq!(got[0].to_raw(), normal(&Device::Cpu, &keys, &[9, n]).to_raw(), "{n}");
        assert_eq!(got[1].to_raw(), got[0].slice(4..5).to_raw(), "{n} alone");
    }
    let long = |device: &Device| normal(device, &keys[..1], &[1, 1 << 17]).to_raw();
    assert!(devices().iter().all(|device| long(device) == long(&Device::Cpu)));
}

/// What assemblers must not fuse: what is fused, or has no rounding written to it.
#[test]
fn the_kernels_of_noise_and_step_round_every_operation_on_its_own() {
    for op in ["noise", "step"] {
        for file in gpu::files().filter(|file| file.op == op) {
            let operations =
                file.text.lines().filter_map(|line| line.split_whitespace().find(|word| !word.starts_with('@')));
            let mut additions = 0;
            for operation in operations {
                let (name, modifiers) = operation.split_once('.').unwrap_or((operation, ""));
                let is_float = modifiers.ends_with("f32") || modifiers.ends_with("f64");
                assert!(!matches!(name, "fma" | "mad") || !is_float, "{}: {operation}", file.path);
                if matches!(name, "add" | "sub" | "mul") && is_float {
                    assert!(modifiers.starts_with("rn."), "{}: {operation}", file.path);
                    additions += 1;
                }
            }
            assert!(additions > 20, "{}: what has become of its arithmetic?", file.path);
        }
    }
}
