use super::*;
use crate::device::with_threads;
use crate::ops::testing::{max_error, random, random_weight};

/// The normalisation in f64, straight from its definition.
fn reference(x: &Tensor, norm: Norm, silu: bool) -> Vec<f64> {
    let channels = x.dim(1);
    let plane: usize = x.shape()[2..].iter().product();
    let size = channels / norm.groups * plane;
    let mut y = Vec::new();
    for (i, group) in x.data().chunks(size).enumerate() {
        let mean = group.iter().map(|v| f64::from(*v)).sum::<f64>() / size as f64;
        let variance = group.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / size as f64;
        for (j, v) in group.iter().enumerate() {
            let c = (i * size + j) / plane % channels;
            let unit = (f64::from(*v) - mean) / (variance + f64::from(norm.eps)).sqrt();
            let v = unit * f64::from(norm.weight.elems().get(c)) + f64::from(norm.bias.elems().get(c));
            y.push(if silu { v / (1.0 + (-v).exp()) } else { v });
        }
    }
    y
}

#[test]
fn forward_matches_the_definition_in_f64_also_far_from_zero() {
    for (b, channels, groups, h, w, offset) in
        [(1, 4, 4, 1, 2, 0.0), (2, 6, 3, 5, 7, 0.0), (2, 8, 2, 40, 33, 0.0), (1, 4, 1, 64, 64, 300.0)]
    {
        let mut x = random(&[b, channels, h, w], 1);
        x.data_mut().iter_mut().for_each(|v| *v += offset);
        let (weight, bias) = (random_weight(&[channels], 2), random_weight(&[channels], 3));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        for silu in [false, true] {
            let error = max_error(&forward(&x, norm, silu), &reference(&x, norm, silu));
            assert!(error < 1e-6, "{:?} offset {offset}: {error:e}", x.shape());
        }
    }
}

#[test]
fn an_image_alone_and_in_a_batch_gives_the_same_bits_for_any_number_of_threads() {
    let x = random(&[9, 12, 17, 13], 1);
    let (weight, bias) = (random_weight(&[12], 2), random_weight(&[12], 3));
    let norm = Norm { weight: &weight, bias: &bias, groups: 4, eps: 1e-6 };
    let run = |threads: usize, images: std::ops::Range<usize>| {
        with_threads(threads, || forward(&x.slice(images), norm, true)).unwrap().data().to_vec()
    };
    let whole = run(1, 0..9);
    assert_eq!(whole, run(2, 0..9));
    for i in 0..9 {
        assert_eq!(whole[i * whole.len() / 9..(i + 1) * whole.len() / 9], run(2, i..i + 1));
    }
}
