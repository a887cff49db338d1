use super::*;
use crate::ops::testing::{check_gradient, max_error, random, random_weight};

/// The operation in f64, straight from its definition.
fn reference(x: &[f64], w: &Weight, bias: &Weight, a: &[f64], b: &[f64], rank: usize, scale: f64) -> Vec<f64> {
    let (out, width) = (w.dim(0), w.dim(1));
    let mut y = Vec::new();
    for row in x.chunks(width) {
        let down: Vec<f64> = (0..rank).map(|r| (0..width).map(|i| row[i] * a[r * width + i]).sum()).collect();
        for o in 0..out {
            let plain: f64 = (0..width).map(|i| row[i] * f64::from(w.elems().get(o * width + i))).sum();
            let low: f64 = (0..rank).map(|r| down[r] * b[o * rank + r]).sum();
            y.push(plain + f64::from(bias.elems().get(o)) + scale * low);
        }
    }
    y
}

#[test]
fn forward_and_backward_match_the_definition_in_f64_at_odd_sizes() {
    for (rows, width, out, rank) in [(1, 3, 5, 1), (7, 33, 65, 4), (20, 130, 31, 2)] {
        let (x, w, bias) = (random(&[rows, width], 1), random_weight(&[out, width], 2), random_weight(&[out], 3));
        let (a, b, dy) = (random(&[rank, width], 4), random(&[out, rank], 5), random(&[rows, out], 6));
        let lora = LoraRef { a: &a, b: &b, scale: 0.5 };
        let f = |x: &[f64], a: &[f64], b: &[f64]| reference(x, &w, &bias, a, b, rank, 0.5);
        let wide = |t: &Tensor| t.data().iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (x64, a64, b64) = (wide(&x), wide(&a), wide(&b));

        let y = forward(&x, &w, Some(&bias), Some(lora));
        assert!(max_error(&y, &f(&x64, &a64, &b64)) < 1e-5);

        let (mut da, mut db) = (Tensor::zeros(&[rank, width]), Tensor::zeros(&[out, rank]));
        let grad = LoraGrad { a: &mut da, b: &mut db };
        let mut dx = Tensor::scratch(&[rows, width]);
        backward(&dy, &w, Some(&x), Some(lora), Some(grad), InputGrad::Overwrite(&mut dx));
        check_gradient(&dx, &x64, &dy, |v| f(v, &a64, &b64));
        check_gradient(&da, &a64, &dy, |v| f(&x64, v, &b64));
        check_gradient(&db, &b64, &dy, |v| f(&x64, &a64, v));
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let (x, w) = (random(&[4, 6], 1), random_weight(&[5, 6], 2));
    let (a, b, dy) = (random(&[2, 6], 3), random(&[5, 2], 4), random(&[4, 5], 5));
    let lora = LoraRef { a: &a, b: &b, scale: 2.0 };
    let (mut da, mut db) = (Tensor::zeros(&[2, 6]), Tensor::zeros(&[5, 2]));
    let mut dx = Tensor::zeros(&[4, 6]);
    for _ in 0..2 {
        let grad = LoraGrad { a: &mut da, b: &mut db };
        backward(&dy, &w, Some(&x), Some(lora), Some(grad), InputGrad::Add(&mut dx));
    }
    let (mut once_a, mut once_b) = (Tensor::zeros(&[2, 6]), Tensor::zeros(&[5, 2]));
    let mut once_x = Tensor::scratch(&[4, 6]);
    let grad = LoraGrad { a: &mut once_a, b: &mut once_b };
    backward(&dy, &w, Some(&x), Some(lora), Some(grad), InputGrad::Overwrite(&mut once_x));
    for (twice, once) in [(da, once_a), (db, once_b), (dx, once_x)] {
        assert!(twice.data().iter().zip(once.data()).all(|(t, o)| (t - 2.0 * o).abs() <= 1e-5 * o.abs().max(1.0)));
    }
}
