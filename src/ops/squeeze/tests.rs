use super::*;
use crate::ops::copy::owned;
use crate::ops::testing::{check_batch_invariance, max_error, random, wide};

#[test]
fn means_and_gates_are_of_channels() {
    for (height, width, channels) in [(1, 1, 3), (7, 5, 24), (40, 33, 97)] {
        let (x, pixels) = (random(&[2, height, width, channels], 1), height * width);
        let values = wide(&x);
        let at = |i: usize| {
            let (image, c) = (i / channels, i % channels);
            (0..pixels).map(|p| values[(image * pixels + p) * channels + c]).sum::<f64>() / pixels as f64
        };
        let want: Vec<f64> = (0..2 * channels).map(at).collect();
        assert!(max_error(&means(&x), &want) < 1e-6, "{:?}", x.shape());
        let (gates, mut y) = (random(&[2, channels], 2), owned(&x));
        excite(&mut y, &gates);
        let gates = gates.to_host();
        let x = x.to_host();
        for (i, got) in y.to_host().into_iter().enumerate() {
            assert_eq!(got, x[i] * gates[i / (pixels * channels) * channels + i % channels]);
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let x = random(&[9, 40, 33, 70], 1);
    check_batch_invariance("means", |r| means(&x.slice(r)));
}
