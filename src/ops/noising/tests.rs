use super::*;
use crate::ops::testing::random;

#[test]
fn each_row_is_mixed_by_its_own_time() {
    let (x0, noise) = (random(&[3, 2, 5], 1), random(&[3, 2, 5], 2));
    let x = forward(&x0, &noise, &[0.0, 0.25, 1.0]);
    assert_eq!(x.slice(0..1).host(), x0.slice(0..1).host());
    assert_eq!(x.slice(2..3).host(), noise.slice(2..3).host());
    for i in 10..20 {
        assert_eq!(x.host()[i], 0.75 * x0.host()[i] + 0.25 * noise.host()[i]);
    }
}
