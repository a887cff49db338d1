use super::*;
use crate::device::with_threads;
use crate::ops::copy::owned;
use crate::ops::testing::{random, wide};

#[test]
fn squares_add_up_in_f64_to_the_same_bits_for_any_number_of_threads() {
    let x = random(&[100_003], 1);
    let want: f64 = wide(&x).iter().map(|v| v * v).sum();
    let sums = [1, 2, 3].map(|threads| with_threads(threads, || sum_of_squares(&x)).unwrap());
    assert!((sums[0] - want).abs() < 1e-12 * want);
    assert!(sums.iter().all(|s| *s == sums[0]));
}

#[test]
fn the_first_element_that_is_no_number_is_found() {
    let mut x = owned(&random(&[100_003], 1));
    assert_eq!(first_non_finite(&x), None);
    x.host_mut()[99_000] = f32::NEG_INFINITY;
    x.host_mut()[99_001] = f32::NAN;
    assert_eq!(first_non_finite(&x), Some((99_000, f32::NEG_INFINITY)));
    x.host_mut()[7] = f32::NAN;
    assert!(matches!(first_non_finite(&x), Some((7, v)) if v.is_nan()));
}
