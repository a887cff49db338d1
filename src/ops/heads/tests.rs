use super::*;
use crate::ops::testing::{check_gradient, max_error, random, random_weight, wide};

#[test]
fn split_then_merge_gives_back_both_parts() {
    let (image, text) = (random(&[2, 5, 12], 1), random(&[2, 3, 12], 2));
    let parts = [Part { offset: 0, len: 5 }, Part { offset: 5, len: 3 }];
    let mut joint = Tensor::zeros(&[2, 4, 8, 3]);
    split_into(&mut joint, &image, parts[0], None);
    split_into(&mut joint, &text, parts[1], None);
    assert_eq!(merge(&joint, parts[0]).data(), image.data());
    assert_eq!(merge(&joint, parts[1]).data(), text.data());
    assert_eq!(joint.data()[8 * 3], image.data()[3], "head 1, token 0 comes from channel 3");
}

/// Tokens 1 to 3 of `[2, 2, 5, 4]` from `x` `[2, 3, 8]`, the rest 0.
fn normalised_split(x: &[f64], w: &Weight) -> Vec<f64> {
    let mut out = vec![0.0; 2 * 2 * 5 * 4];
    for (r, row) in x.chunks(4).enumerate() {
        let (b, i, h) = (r / 6, r / 2 % 3, r % 2);
        let rms = (row.iter().map(|v| v * v).sum::<f64>() / 4.0 + f64::from(EPS)).sqrt();
        for c in 0..4 {
            out[((b * 2 + h) * 5 + 1 + i) * 4 + c] = row[c] / rms * f64::from(w.elems().get(c));
        }
    }
    out
}

#[test]
fn normalised_split_matches_f64() {
    let (x, w) = (random(&[2, 3, 8], 1), random_weight(&[4], 2));
    let mut out = Tensor::zeros(&[2, 2, 5, 4]);
    split_into(&mut out, &x, Part { offset: 1, len: 3 }, Some(&w));
    assert!(max_error(&out, &normalised_split(&wide(&x), &w)) < 1e-6);
}

#[test]
fn gradient_of_the_normalised_split_matches_finite_differences() {
    let (x, w) = (random(&[2, 3, 8], 1), random_weight(&[4], 2));
    let dout = random(&[2, 2, 5, 4], 3);
    let part = Part { offset: 1, len: 3 };
    let reference = |x: &[f64]| normalised_split(x, &w);
    check_gradient(&backward(&dout, part, &x, Some(&w)), &wide(&x), &dout, reference);
}
