use super::*;
use crate::device::{DType, Device, with_threads};
use crate::ops::affine::{self, Affine};
use crate::ops::linear::rounded;
use crate::ops::testing::{devices, on_vm, random, wide};

#[test]
fn products_are_means_over_a_row_in_f64() {
    let (rows, per) = (3, 4099);
    let [a, b, c] = [1, 2, 3].map(|seed| random(&[rows, per], seed));
    let weights = [0.5, -2.0, 0.0];
    let found = devices().map(|device| {
        let [a, b, c] = [&a, &b, &c].map(|t| t.to(&device));
        let differences = [
            Difference { terms: vec![(Weights::All(1.0), &a), (Weights::All(-1.0), &b)] },
            Difference { terms: vec![(Weights::All(1.0), &c), (Weights::Rows(&weights), &a)] },
        ];
        forward(&differences)
    });
    assert_eq!(found[0], found[1]);
    let [found, _] = found;
    let (a, b, c) = (wide(&a), wide(&b), wide(&c));
    for row in 0..rows {
        let at = |i: usize| row * per + i;
        let d = |i: usize| [a[at(i)] - b[at(i)], c[at(i)] + f64::from(weights[row]) * a[at(i)]];
        let mean = |f: &dyn Fn([f64; 2]) -> f64| (0..per).map(|i| f(d(i))).sum::<f64>() / per as f64;
        // Each difference is rounded to f32 once or twice before it is multiplied; the errors have random signs.
        let near = |x: f64, y: f64| (x - y).abs() < 1e-7;
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            assert!(near(found[row].gram[i][j], mean(&|d| d[i] * d[j])));
        }
        assert!((0..2).all(|i| near(found[row].l1[i], mean(&|d| d[i].abs()))));
        assert_eq!((found[row].gram[2], found[row].l1[2]), ([0.0; 4], 0.0));
    }
}

#[test]
fn near_velocities_lose_nothing() {
    // One is a 2^-16 part longer: the difference is exact in f32.
    let a = random(&[1, 1000], 1);
    let b = affine::forward(&a, Affine { scale: 1.0 + 2f32.powi(-10), ..Affine::default() });
    let exact = wide(&b).iter().zip(wide(&a)).map(|(b, a)| (b - a).powi(2)).sum::<f64>() / 1000.0;
    for device in devices() {
        let (a, b) = (a.to(&device), b.to(&device));
        let d = forward(&[Difference { terms: vec![(Weights::All(1.0), &b), (Weights::All(-1.0), &a)] }]);
        assert!((d[0].gram[0][0] - exact).abs() < 1e-14 * exact, "{device:?}");
    }
}

#[test]
fn a_row_alone_and_in_a_batch_gives_the_same_bits_for_any_number_of_threads() {
    let (a, b) = (random(&[9, 1031], 1), random(&[9, 1031], 2));
    let run = |threads, rows: std::ops::Range<usize>| {
        let (a, b) = (a.slice(rows.clone()), b.slice(rows));
        let terms = vec![(Weights::All(1.0), &a), (Weights::All(-1.0), &b)];
        with_threads(threads, || forward(&[Difference { terms }])).unwrap()
    };
    let whole = run(1, 0..9);
    assert_eq!(whole, run(3, 0..9));
    assert_eq!(whole[4..5], run(2, 4..5));
}

/// The products of `n` differences of `operands`, which have weights of every kind.
fn of(operands: &[Tensor; 4], n: usize, weights: &[f32]) -> Vec<Products> {
    let [a, b, c, d] = operands;
    let differences = [
        Difference { terms: vec![(Weights::All(1.0), a), (Weights::All(-1.0), b)] },
        Difference { terms: vec![(Weights::Rows(weights), c)] },
        Difference { terms: vec![(Weights::All(0.5), b), (Weights::Rows(weights), d), (Weights::All(-1.5), a)] },
        Difference { terms: [a, b, c, d].map(|t| (Weights::Rows(weights), t)).to_vec() },
    ];
    forward(&differences[..n])
}

#[test]
fn kernels_give_the_cpu_s_bits_for_operands_of_any_type_and_a_row_is_the_same_in_any_batch() {
    let weights: Vec<f32> = (0..9).map(|row| row as f32 - 3.5).collect();
    let types = [DType::F32, DType::Bf16, DType::F16, DType::F32];
    for (i, length) in [1, 4, 127, 1023, 1024, 1025, 2049].into_iter().enumerate() {
        let n = i % MOST + 1;
        let operands = [1, 2, 3, 4].map(|seed| rounded(&random(&[9, length], seed), types[(i + seed as usize) % 4]));
        let want = of(&operands.each_ref().map(|t| rounded(t, DType::F32)), n, &weights);
        let bytes = |products: Vec<Products>| {
            let numbers: Vec<f64> =
                products.iter().flat_map(|p| p.gram.iter().flatten().chain(&p.l1)).copied().collect();
            Tensor::from_bytes(
                &Device::Cpu,
                bytemuck::cast_slice(&numbers),
                &[products.len(), numbers.len() * 8 / products.len()],
            )
        };
        let want = bytes(want);
        let got = on_vm(|device| {
            let operands = operands.each_ref().map(|t| t.to(device));
            let alone = operands.each_ref().map(|t| t.slice(4..5));
            vec![bytes(of(&operands, n, &weights)), bytes(of(&alone, n, &weights[4..5]))]
        });
        assert_eq!(got[0].to_raw(), want.to_raw(), "{n} of {length}");
        assert_eq!(got[1].to_raw(), want.slice(4..5).to_raw(), "{n} of {length} alone");
    }
}
