use super::*;
use crate::ops::testing::{check_gradient, random, random_weight, wide};

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

#[test]
fn gradient_of_the_normalised_split_matches_finite_differences() {
    let (x, w) = (random(&[2, 3, 8], 1), random_weight(&[4], 2));
    let dout = random(&[2, 2, 5, 4], 3);
    let part = Part { offset: 1, len: 3 };
    let w64: Vec<f64> = w.to_f32().iter().map(|v| f64::from(*v)).collect();
    let reference = |x: &[f64]| -> Vec<f64> {
        let mut out = vec![0.0; 2 * 2 * 5 * 4];
        for (r, row) in x.chunks(4).enumerate() {
            let (b, i, h) = (r / 6, r / 2 % 3, r % 2);
            let rms = (row.iter().map(|v| v * v).sum::<f64>() / 4.0 + f64::from(EPS)).sqrt();
            for c in 0..4 {
                out[((b * 2 + h) * 5 + 1 + i) * 4 + c] = row[c] / rms * w64[c];
            }
        }
        out
    };
    check_gradient(&backward(&dout, part, &x, Some(&w)), &wide(&x), &dout, reference);
}
