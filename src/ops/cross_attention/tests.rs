use super::*;
use crate::device::{DType, Device};
use crate::ops::testing::{check_batch_invariance, max_error, random, wide};

const HEADS: Heads = Heads { count: 2, scale: 0.4, compute: DType::F32 };

/// The same in f64; `seen` says which key which query of which sample sees.
fn reference([q, k, v]: [&Tensor; 3], seen: impl Fn(usize, usize, usize) -> bool) -> Vec<f64> {
    let (b, m, n, width) = (q.dim(0), q.dim(1), k.dim(1), q.dim(2));
    let (q, k, v, d) = (wide(q), wide(k), wide(v), width / HEADS.count);
    let mut out = vec![0.0; b * m * width];
    for (b, i, c) in (0..b).flat_map(|b| (0..m).flat_map(move |i| (0..width).map(move |c| (b, i, c)))) {
        let of_head = c / d * d;
        let dot = |j: usize| {
            (0..d).map(|e| q[(b * m + i) * width + of_head + e] * k[(b * n + j) * width + of_head + e]).sum::<f64>()
        };
        let e: Vec<f64> =
            (0..n).map(|j| if seen(b, i, j) { (f64::from(HEADS.scale) * dot(j)).exp() } else { 0.0 }).collect();
        let total: f64 = e.iter().sum();
        out[(b * m + i) * width + c] = (0..n).map(|j| e[j] / total * v[(b * n + j) * width + c]).sum();
    }
    out
}

#[test]
fn queries_of_one_sequence_see_the_keys_of_another() {
    for (m, n, d) in [(1, 1, 4), (7, 300, 5), (130, 9, 16)] {
        let [q, k, v] = [(m, 1), (n, 2), (n, 3)].map(|(tokens, seed)| random(&[2, tokens, 2 * d], seed));
        let error = max_error(&forward(&q, &k, &v, HEADS, None), &reference([&q, &k, &v], |_, _, _| true));
        assert!(error < 1e-5, "{m} queries, {n} keys: off by {error:e}");
    }
}

#[test]
fn a_query_sees_only_what_it_may_and_everything_if_that_is_nothing() {
    let (m, n) = (6, 37);
    let [q, k, v] = [(m, 1), (n, 2), (n, 3)].map(|(tokens, seed)| random(&[2, tokens, 8], seed));
    let mut sees = wide(&random(&[2, n, m], 4));
    // The third query of the first sample may see nothing, the fourth what is at the border: sigmoid(0) = 1/2.
    for j in 0..n {
        sees[j * m + 2] = -1.0;
        sees[j * m + 3] = if j == 5 { 0.0 } else { -1e-3 };
    }
    let numbers: Vec<f32> = sees.iter().map(|v| *v as f32).collect();
    let mask = Tensor::from_slice(&Device::Cpu, &numbers, &[2, n, m]);
    let seen = |b: usize, i: usize, j: usize| (b, i) == (0, 2) || sees[(b * n + j) * m + i] >= 0.0;
    let error = max_error(&forward(&q, &k, &v, HEADS, Some(&mask)), &reference([&q, &k, &v], seen));
    assert!(error < 1e-5, "off by {error:e}");
}

#[test]
fn a_sample_gives_the_same_bits_alone_and_in_a_batch() {
    let [q, k, v, sees] =
        [(70, 8, 1), (90, 8, 2), (90, 8, 3), (90, 70, 4)].map(|(n, w, seed)| random(&[9, n, w], seed));
    check_batch_invariance("cross attention", |samples| {
        let [q, k, v, sees] = [&q, &k, &v, &sees].map(|t| t.slice(samples.clone()));
        forward(&q, &k, &v, HEADS, Some(&sees))
    });
}
