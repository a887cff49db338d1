use super::*;
use crate::device::with_threads;
use crate::ops::heads;
use crate::ops::testing::{check_gradient, max_error, random, wide};

/// Attention in f64, head-major `[bh, n, d]`.
fn reference(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    n: usize,
    d: usize,
    scale: f64,
    score: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    for bh in 0..q.len() / (n * d) {
        for i in 0..n {
            let at = |t: &[f64], r: usize, c: usize| t[(bh * n + r) * d + c];
            let s: Vec<f64> = (0..n)
                .map(|j| scale * (0..d).map(|c| at(q, i, c) * at(k, j, c)).sum::<f64>() + score(bh, i, j))
                .collect();
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = e.iter().sum();
            for c in 0..d {
                out[(bh * n + i) * d + c] = (0..n).map(|j| e[j] / total * at(v, j, c)).sum();
            }
        }
    }
    out
}

#[test]
fn attention_matches_f64_across_tile_edges_with_masks_and_bias() {
    for (n, d) in [(1, 4), (7, 5), (128, 8), (131, 16), (300, 3)] {
        let shape = [2, 3, n, d];
        let (q, k, v, bias) = (random(&shape, 1), random(&shape, 2), random(&shape, 3), random(&[3, n, n], 4));
        let bias64 = wide(&bias);
        for causal in [false, true] {
            for with_bias in [false, true] {
                let mask = Mask { causal, bias: with_bias.then_some(&bias) };
                let got = forward(&q, &k, &v, 0.3, mask).out;
                let want = reference(&wide(&q), &wide(&k), &wide(&v), n, d, 0.3f32.into(), |bh, i, j| {
                    let b = if with_bias { bias64[(bh % 3 * n + i) * n + j] } else { 0.0 };
                    if causal && j > i { f64::NEG_INFINITY } else { b }
                });
                assert!(max_error(&heads::split(&got, 3), &want) < 1e-5, "n {n} d {d} causal {causal}");
            }
        }
    }
}

#[test]
fn gradients_match_finite_differences_over_a_joint_sequence() {
    let (n, d, heads) = (9, 4, 2);
    let shape = [1, heads, n, d];
    let parts = [Part { offset: 0, len: 6 }, Part { offset: 6, len: 3 }];
    let (q, k, v, dhead) = (random(&shape, 1), random(&shape, 2), random(&shape, 3), random(&shape, 4));
    let (out, lse) = forward_joint(&q, &k, &v, 0.5, &parts);
    let dout = parts.map(|p| heads::merge(&dhead, p));
    let (dq, dk, dv) = backward(&[&dout[0], &dout[1]], &[&out[0], &out[1]], &lse, (&q, &k, &v), 0.5, &parts);
    let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
    let f = |q: &[f64], k: &[f64], v: &[f64]| reference(q, k, v, n, d, 0.5, |_, _, _| 0.0);
    check_gradient(&dq, &q64, &dhead, |x| f(x, &k64, &v64));
    check_gradient(&dk, &k64, &dhead, |x| f(&q64, x, &v64));
    check_gradient(&dv, &v64, &dhead, |x| f(&q64, &k64, x));
}

#[test]
fn gradients_across_tiles_are_those_of_the_whole() {
    // With 200 queries there are two tiles; dk and dv add up over both.
    let shape = [1, 1, 200, 3];
    let (q, k, v, dhead) = (random(&shape, 1), random(&shape, 2), random(&shape, 3), random(&shape, 4));
    let part = [Part { offset: 0, len: 200 }];
    let (out, lse) = forward_joint(&q, &k, &v, 0.5, &part);
    let dout = heads::merge(&dhead, part[0]);
    let (_, dk, _) = backward(&[&dout], &[&out[0]], &lse, (&q, &k, &v), 0.5, &part);
    let (q64, v64) = (wide(&q), wide(&v));
    check_gradient(&dk, &wide(&k), &dhead, |x| reference(&q64, x, &v64, 200, 3, 0.5, |_, _, _| 0.0));
}

#[test]
fn a_sample_alone_and_in_a_batch_of_nine_gives_the_same_bits_for_any_number_of_threads() {
    let shape = [9, 2, 150, 8];
    let (q, k, v) = (random(&shape, 1), random(&shape, 2), random(&shape, 3));
    let run = |threads, range: std::ops::Range<usize>| {
        let [q, k, v] = [&q, &k, &v].map(|t| t.slice(range.clone()));
        with_threads(threads, || forward(&q, &k, &v, 0.3, Mask::default()).out).unwrap()
    };
    let whole = run(1, 0..9);
    assert_eq!(whole.data(), run(2, 0..9).data());
    assert_eq!(whole.slice(4..5).data(), run(2, 4..5).data());
}
