use super::*;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, on_vm, random, wide};

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
        let want = reference([&q, &k, &v], |_, _, _| true);
        for device in devices() {
            let [q, k, v] = [&q, &k, &v].map(|t| t.to(&device));
            let error = max_error(&forward(&q, &k, &v, HEADS, None), &want);
            assert!(error < 1e-5, "{m} queries, {n} keys on {device:?}: off by {error:e}");
        }
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
    let want = reference([&q, &k, &v], seen);
    for device in devices() {
        let [q, k, v, mask] = [&q, &k, &v, &mask].map(|t| t.to(&device));
        let error = max_error(&forward(&q, &k, &v, HEADS, Some(&mask)), &want);
        assert!(error < 1e-5, "off by {error:e} on {device:?}");
    }
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

#[test]
fn kernels_give_a_sample_the_same_bits_in_any_batch_and_whatever_the_order() {
    // More queries and keys than a tile has; tiles of which some queries see nothing.
    for d in [12, 64, 128] {
        let (m, n, width) = (70, 140, d);
        let [q, k, v] = [(m, 1), (n, 2), (n, 3)].map(|(tokens, seed)| random(&[2, tokens, width], seed));
        let late = |i: usize| if i / m % n < 100 && i.is_multiple_of(7) { -1.0 } else { (i * 37 % 11) as f32 - 3.0 };
        let sees: Vec<f32> = (0..2 * n * m).map(late).collect();
        let sees = Tensor::from_slice(&Device::Cpu, &sees, &[2, n, m]);
        let heads = Heads { count: 1, ..HEADS };
        let run = |device: &Device, samples: std::ops::Range<usize>| {
            let [q, k, v, sees] = [&q, &k, &v, &sees].map(|t| t.slice(samples.clone()).to(device));
            forward(&q, &k, &v, heads, Some(&sees))
        };
        let got = on_vm(|device| vec![run(device, 0..2), run(device, 1..2)]);
        assert!(bits(&got[0].slice(1..2)) == bits(&got[1]), "heads of {d}");
        let error = max_error(&got[0], &wide(&run(&Device::Cpu, 0..2)));
        assert!(error < 1e-5, "heads of {d}: off by {error:e}");
    }
}

#[test]
fn operands_in_half_precision_give_the_result_of_their_values_rounded_once() {
    let [q, k, v] = [(5, 1), (9, 2), (9, 3)].map(|(n, seed)| rounded(&random(&[2, n, 16], seed), DType::Bf16));
    let want = reference([&q, &k, &v], |_, _, _| true);
    let got = on_vm(|device| {
        let [q, k, v] = [&q, &k, &v].map(|t| t.to(device));
        vec![forward(&q, &k, &v, HEADS, None)]
    });
    assert_eq!(got[0].dtype(), DType::Bf16);
    let error = max_error(&got[0], &want);
    assert!(error < 2f64.powi(-8) + 1e-5, "off by {error:e}");
}
