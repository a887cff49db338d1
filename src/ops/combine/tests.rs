use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::products::{self, Weights};
use crate::ops::testing::{check_gradient, devices, on_vm, random, wide};

/// Whatever an algorithm makes of the products: its gradient is this combination.
#[test]
fn a_combination_is_the_gradient_of_a_function_of_products() {
    let (rows, per) = (2, 31);
    let [v, r, y] = [1, 2, 3].map(|seed| random(&[rows, per], seed));
    // L = Σ_rows (g00² + 3·g01): dL/dv = 4·g00·d0/D + 3·d1/D.
    let grads = devices().map(|device| {
        let [v, r, y] = [&v, &r, &y].map(|t| t.to(&device));
        let terms = |w| vec![(Weights::All(1.0), &v), (Weights::All(w), &r)];
        let differences = [Difference { terms: terms(-1.0) }, Difference { terms: vec![(Weights::All(1.0), &y)] }];
        let g = products::forward(&differences);
        let coefficients = [g.iter().map(|p| 4.0 * p.gram[0][0]).collect(), vec![3.0; rows]];
        forward(&differences, &coefficients)
    });
    let (r64, y64) = (wide(&r), wide(&y));
    let loss = |v: &[f64]| -> Vec<f64> {
        let row = |row: usize| {
            let mean = |f: &dyn Fn(usize) -> f64| (row * per..(row + 1) * per).map(f).sum::<f64>() / per as f64;
            mean(&|i| (v[i] - r64[i]).powi(2)).powi(2) + 3.0 * mean(&|i| (v[i] - r64[i]) * y64[i])
        };
        vec![(0..rows).map(row).sum()]
    };
    let one = Tensor::from_slice(&v.device(), &[1.0], &[1]);
    grads.iter().for_each(|grad| check_gradient(grad, &wide(&v), &one, loss));
}

#[test]
fn kernels_give_the_cpu_s_bits_for_operands_of_any_type_and_a_row_is_the_same_in_any_batch() {
    let weights: Vec<f32> = (0..9).map(|row| row as f32 - 3.5).collect();
    let coefficients = [1, 2, 3, 4].map(|seed| wide(&random(&[9], seed)));
    let run = |operands: &[Tensor; 4], n: usize, rows: std::ops::Range<usize>| {
        let [a, b, c, d] = operands.each_ref().map(|t| t.slice(rows.clone()));
        let weights = &weights[rows.clone()];
        let differences = [
            Difference { terms: vec![(Weights::All(1.0), &a), (Weights::All(-1.0), &b)] },
            Difference { terms: vec![(Weights::Rows(weights), &c)] },
            Difference { terms: vec![(Weights::All(0.5), &b), (Weights::Rows(weights), &d)] },
            Difference { terms: [&d, &c, &b, &a].map(|t| (Weights::Rows(weights), t)).to_vec() },
        ];
        forward(&differences[..n], &coefficients.each_ref().map(|c| c[rows.clone()].to_vec())[..n])
    };
    let types = [DType::F32, DType::Bf16, DType::F16];
    for (i, length) in [1, 4, 7, 1023, 1024, 1025, 2050].into_iter().enumerate() {
        let n = i % 4 + 1;
        let operands = [0, 1, 2, 3].map(|k| rounded(&random(&[9, length], k as u64), types[(i + k) % 3]));
        let want = run(&operands.each_ref().map(|t| rounded(t, DType::F32)), n, 0..9);
        let got = on_vm(|device: &Device| {
            let operands = operands.each_ref().map(|t| t.to(device));
            vec![run(&operands, n, 0..9), run(&operands, n, 4..5)]
        });
        assert_eq!(got[0].to_raw(), rounded(&want, types[i % 3]).to_raw(), "{n} of {length}");
        assert_eq!(got[1].to_raw(), got[0].slice(4..5).to_raw(), "{n} of {length} alone");
    }
}
