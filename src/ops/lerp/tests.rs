use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, max_error, random, wide};

#[test]
fn the_average_moves_by_its_share_and_jumps_without_decay() {
    let (average, x) = (random(&[10_007], 1), random(&[10_007], 2));
    for decay in [0.0, 0.3, 1.0] {
        let mut moved = owned(&average);
        forward(&mut moved, &x, decay);
        let d = f64::from(decay);
        let want: Vec<f64> = wide(&average).iter().zip(wide(&x)).map(|(a, x)| d * a + (1.0 - d) * x).collect();
        assert!(max_error(&moved, &want) < 1e-7);
        if decay == 0.0 {
            assert_eq!(bits(&moved), bits(&x));
        }
        if decay == 1.0 {
            assert_eq!(bits(&moved), bits(&average));
        }
    }
}
