use half::{bf16, f16};

use super::*;
use crate::device::with_threads;
use crate::ops::testing::random;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    random(&[n], seed).to_host()
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 70, 33),
    (5, 3, 2),
    (12, 32, 384),
    (13, 33, 385),
    (25, 64, 1000),
    (100, 31, 7),
    (64, 800, 96),
    (2, 5, 0),
];

/// Rounding of a chain of `k` multiply-adds of unit normals: each of k roundings is at most half an ulp of a
/// partial sum of size about sqrt(k).
fn tolerance(k: usize) -> f64 {
    f64::from(f32::EPSILON) * (k as f64 + 2.0) * 4.0
}

fn product(a: Mat, b: Mat) -> Vec<f64> {
    let mut out = vec![0.0; a.rows * b.cols];
    for i in 0..a.rows {
        for j in 0..b.cols {
            out[i * b.cols + j] = (0..a.cols)
                .map(|k| {
                    f64::from(a.data.get(i * a.row_stride + k * a.col_stride))
                        * f64::from(b.data.get(k * b.row_stride + j * b.col_stride))
                })
                .sum();
        }
    }
    out
}

#[test]
fn product_matches_f64_for_every_layout_and_odd_sizes() {
    for (m, n, k) in SHAPES {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let lefts = [Mat::new(&a, m, k), Mat::new(&a, k, m).t()];
        let rights = [Mat::new(&b, k, n), Mat::new(&b, n, k).t()];
        for a in lefts {
            for b in rights {
                let mut c = vec![f32::NAN; m * n];
                matmul(&mut c, n, a, b, Epilogue::default());
                for (got, want) in c.iter().zip(product(a, b)) {
                    assert!((f64::from(*got) - want).abs() <= tolerance(k), "{m}x{n}x{k}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn epilogue_scales_accumulates_and_adds_the_bias() {
    let (m, n, k) = (13, 35, 400);
    let (a, b, bias, before) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3), numbers(m * n, 4));
    let mut c = before.clone();
    let epilogue = Epilogue { scale: 0.5, accumulate: true, bias: Some(&bias) };
    matmul(&mut c, n, Mat::new(&a, m, k), Mat::new(&b, k, n), epilogue);
    let plain = product(Mat::new(&a, m, k), Mat::new(&b, k, n));
    for i in 0..m * n {
        let want = f64::from(before[i]) + 0.5 * plain[i] + f64::from(bias[i % n]);
        assert!((f64::from(c[i]) - want).abs() <= tolerance(k));
    }
}

#[test]
fn weights_of_every_type_multiply_as_their_values_say_in_tiles_of_every_height() {
    for (n, k) in [(37, 801), (16, 16)] {
        let b = numbers(n * k, 2);
        let b16: Vec<bf16> = b.iter().map(|v| bf16::from_f32(*v)).collect();
        let bf: Vec<f16> = b.iter().map(|v| f16::from_f32(*v)).collect();
        let types = [("f32", Elems::F32(&b)), ("bf16", Elems::Bf16(&b16)), ("f16", Elems::F16(&bf))];
        for (m, (name, data)) in (1..15).flat_map(|m| types.map(|t| (m, t))) {
            // What bf16 holds is not rounded where products are of bf16.
            let a: Vec<f32> = numbers(m * k, 1).iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
            for b in [Mat::strided(data, n, k, k).t(), Mat::strided(data, k, n, n)] {
                let a = Mat::new(&a, m, k);
                let mut c = vec![f32::NAN; m * n];
                matmul(&mut c, n, a, b, Epilogue::default());
                for (got, want) in c.iter().zip(product(a, b)) {
                    assert!((f64::from(*got) - want).abs() <= tolerance(k), "{m}x{n}x{k} of {name}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_and_in_a_batch_of_nine_gives_the_same_bits_for_any_number_of_threads() {
    for (n, k) in [(32, 16), (200, 500), (770, 130)] {
        let (a, b) = (numbers(9 * k, 1), numbers(k * n, 2));
        let b16: Vec<bf16> = b.iter().map(|v| bf16::from_f32(*v)).collect();
        for data in [Elems::F32(&b), Elems::Bf16(&b16)] {
            let right = Mat::strided(data, n, k, k).t();
            let run = |threads: usize, rows: std::ops::Range<usize>| {
                let mut c = vec![0.0; rows.len() * n];
                let left = Mat::new(&a[rows.start * k..rows.end * k], rows.len(), k);
                with_threads(threads, || matmul(&mut c, n, left, right, Epilogue::default())).unwrap();
                c.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let whole = run(1, 0..9);
            assert_eq!(whole, run(2, 0..9));
            assert_eq!(whole, run(3, 0..9));
            for i in 0..9 {
                assert_eq!(whole[i * n..(i + 1) * n], run(2, i..i + 1));
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_that_of_the_half_crate() {
    let special = [0, 1, 0x8000, 0x8001, 0x1_8000, 0x7F7F_8000, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FFF_FFFF];
    for bits in special.into_iter().flat_map(|b| [b, b | 1 << 31]).chain((0..u32::MAX).step_by(65_521)) {
        let v = f32::from_bits(bits);
        assert_eq!(pack::round(v), bf16::from_f32(v).to_bits(), "{bits:08x}");
    }
}
