use super::*;
use crate::ops::testing::max_error;

#[test]
fn embedding_matches_its_formula_in_f64() {
    let (times, channels) = ([0.0f32, 0.25, 8.928_572, 999.0, 1000.0], 10);
    let mut want = Vec::new();
    for t in times {
        let angle = |i: i32| f64::from(t) * 10_000f64.powf(-f64::from(i) / 5.0);
        want.extend((0..5).map(|i| angle(i).cos()).chain((0..5).map(|i| angle(i).sin())));
    }
    let y = forward(&Device::Cpu, &times, channels);
    assert_eq!(y.shape(), [5, channels]);
    // An angle of up to 1000 rounded to f32, twice.
    assert!(max_error(&y, &want) < 1000.0 * f64::from(f32::EPSILON) * 2.0, "{:e}", max_error(&y, &want));
}
