use super::*;
use crate::ops::testing::{devices, max_error, on_vm};

#[test]
fn embedding_matches_its_formula_in_f64() {
    let (times, channels) = ([0.0f32, 0.25, 8.928_572, 999.0, 1000.0], 10);
    let mut want = Vec::new();
    for t in times {
        let angle = |i: i32| f64::from(t) * 10_000f64.powf(-f64::from(i) / 5.0);
        want.extend((0..5).map(|i| angle(i).cos()).chain((0..5).map(|i| angle(i).sin())));
    }
    for device in devices() {
        let y = forward(&device, &times, channels);
        assert_eq!(y.shape(), [5, channels]);
        // An angle of up to 1000 rounded to f32, twice.
        assert!(max_error(&y, &want) < 1000.0 * f64::from(f32::EPSILON) * 2.0, "{:e}", max_error(&y, &want));
    }
}

#[test]
fn a_kernel_gives_the_cpu_s_bits() {
    let times: Vec<f32> = (0..9).map(|i| i as f32 * 124.875 + 0.1).collect();
    let got = on_vm(|device| vec![forward(device, &times, 256), forward(device, &times[6..7], 256)]);
    assert_eq!(got[0].to_raw(), forward(&Device::Cpu, &times, 256).to_raw());
    assert_eq!(got[0].slice(6..7).to_raw(), got[1].to_raw());
}
