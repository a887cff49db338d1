use super::*;
use crate::device::Device;
use crate::ops::testing::{check_gradient, devices, max_error, on_vm, random, wide};

fn single(count: usize, scale: f32) -> Heads {
    Heads { count, scale, compute: DType::F32 }
}

/// Attention in f64 over one sequence `[b, n, heads·d]`; `score` is added to that of (head, query, key).
fn reference(
    [q, k, v]: [&[f64]; 3],
    [n, heads, d]: [usize; 3],
    scale: f64,
    score: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let mut out = vec![0.0; q.len()];
    let at = |b: usize, row: usize, head: usize, c: usize| ((b * n + row) * heads + head) * d + c;
    for (b, head) in (0..q.len() / (n * heads * d)).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        for i in 0..n {
            let dot = |j: usize| (0..d).map(|c| q[at(b, i, head, c)] * k[at(b, j, head, c)]).sum::<f64>();
            let s: Vec<f64> = (0..n).map(|j| scale * dot(j) + score(head, i, j)).collect();
            let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = e.iter().sum();
            for c in 0..d {
                out[at(b, i, head, c)] = (0..n).map(|j| e[j] / total * v[at(b, j, head, c)]).sum();
            }
        }
    }
    out
}

#[test]
fn attention_matches_f64_across_tile_edges_with_masks_and_bias() {
    for (n, d) in [(1, 4), (7, 5), (128, 8), (131, 16), (300, 3)] {
        let heads = 3;
        let [q, k, v] = [1, 2, 3].map(|seed| random(&[2, n, heads * d], seed));
        let bias = random(&[heads, n, n], 4);
        let bias64 = wide(&bias);
        for causal in [false, true] {
            for (with_bias, device) in [false, true].into_iter().flat_map(|b| devices().map(|d| (b, d))) {
                let [q, k, v, bias] = [&q, &k, &v, &bias].map(|t| t.to(&device));
                let mask = Mask { causal, bias: with_bias.then_some(&bias) };
                let got = forward(&[Part { q: &q, k: &k, v: &v }], single(heads, 0.3), mask);
                let score = |head: usize, i: usize, j: usize| {
                    let b = if with_bias { bias64[(head * n + i) * n + j] } else { 0.0 };
                    if causal && j > i { f64::NEG_INFINITY } else { b }
                };
                let want = reference([&wide(&q), &wide(&k), &wide(&v)], [n, heads, d], 0.3f32.into(), score);
                assert!(
                    max_error(&got.out[0], &want) < 1e-5,
                    "n {n} d {d} causal {causal} bias {with_bias} {device:?}"
                );
            }
        }
    }
}

/// `[b, n, w]` cut into `[b, first, w]` and the rest.
fn cut(x: &Tensor, first: usize) -> [Tensor; 2] {
    let (b, n, w) = (x.dim(0), x.dim(1), x.dim(2));
    [0..first, first..n].map(|rows| {
        let picked: Vec<f32> =
            (0..b).flat_map(|i| x.host()[(i * n + rows.start) * w..(i * n + rows.end) * w].to_vec()).collect();
        Tensor::from_slice(&Device::Cpu, &picked, &[b, rows.len(), w])
    })
}

/// Two parts put together.
fn joined([a, b]: [&Tensor; 2]) -> Tensor {
    let w = a.width();
    let [host_a, host_b] = [a, b].map(Tensor::to_host);
    let parts = host_a.chunks(a.dim(1) * w).zip(host_b.chunks(b.dim(1) * w));
    let data: Vec<f32> = parts.flat_map(|(a, b)| [a, b].concat()).collect();
    Tensor::from_slice(&Device::Cpu, &data, &[a.dim(0), a.dim(1) + b.dim(1), w])
}

#[test]
fn parts_attend_to_one_another_as_one_sequence_and_so_do_their_gradients() {
    // The second sequence takes several tiles of queries and of keys.
    let sizes = [(2, 9, 6, 2, 4), (1, 200, 130, 1, 3)];
    for ((b, n, first, heads, d), device) in sizes.into_iter().flat_map(|s| devices().map(|d| (s, d))) {
        let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| random(&[b, n, heads * d], seed));
        let [qs, ks, vs, douts] = [&q, &k, &v, &dout].map(|t| cut(t, first).map(|t| t.to(&device)));
        let parts = [0, 1].map(|i| Part { q: &qs[i], k: &ks[i], v: &vs[i] });
        let done = forward(&parts, single(heads, 0.5), Mask::default());
        let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
        let f = |q: &[f64], k: &[f64], v: &[f64]| reference([q, k, v], [n, heads, d], 0.5, |_, _, _| 0.0);
        assert!(max_error(&joined([&done.out[0], &done.out[1]]), &f(&q64, &k64, &v64)) < 1e-5);

        let outputs = [0, 1].map(|i| Some(OutputGrad { out: &done.out[i], dout: &douts[i] }));
        let grads = backward(&outputs, &done.lse, &parts, single(heads, 0.5));
        let whole = |f: &dyn Fn(&PartGrad) -> &Tensor| joined([f(&grads[0]), f(&grads[1])]);
        check_gradient(&whole(&|g| &g.k), &k64, &dout, |x| f(&q64, x, &v64));
        if n < 100 {
            check_gradient(&whole(&|g| g.q.as_ref().unwrap()), &q64, &dout, |x| f(x, &k64, &v64));
            check_gradient(&whole(&|g| &g.v), &v64, &dout, |x| f(&q64, &k64, x));
        }
    }
}

#[test]
fn a_part_whose_result_nothing_reads_counts_as_one_with_gradient_zero() {
    for device in devices() {
        let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| cut(&random(&[2, 11, 8], seed), 7).map(|t| t.to(&device)));
        let parts = [0, 1].map(|i| Part { q: &q[i], k: &k[i], v: &v[i] });
        let done = forward(&parts, single(2, 0.5), Mask::default());
        let read = Some(OutputGrad { out: &done.out[0], dout: &dout[0] });
        let zeros = Tensor::zeros(&device, v[1].shape());
        let zero = Some(OutputGrad { out: &done.out[1], dout: &zeros });
        let [unread, zero] = [None, zero].map(|second| backward(&[read, second], &done.lse, &parts, single(2, 0.5)));
        assert!(unread[1].q.is_none());
        for i in 0..2 {
            for (a, b) in [(&unread[i].k, &zero[i].k), (&unread[i].v, &zero[i].v)] {
                assert!(max_error(a, &wide(b)) < 1e-6);
            }
        }
        for grad in backward(&[None, None], &done.lse, &parts, single(2, 0.5)) {
            assert!(grad.k.to_host().into_iter().chain(grad.v.to_host()).all(|g| g == 0.0));
        }
    }
}

#[test]
fn rounding_operands_to_bf16_moves_results_and_gradients_by_no_more_than_it_must() {
    // An operand's rounding is at most 2⁻⁹ of it. Two operands per product and two products behind one another add to
    // less than 2⁻⁷ of the largest result, and the gradients' three to less than 2⁻⁶.
    for (first, rest, d) in [(9, 5, 8), (130, 71, 16), (64, 700, 5)] {
        let parts = |seed: u64| [first, rest].map(|n| random(&[2, n, 2 * d], seed + n as u64));
        let [q, k, v, dout] = [1000, 2000, 3000, 4000].map(parts);
        let parts = [0, 1].map(|i| Part { q: &q[i], k: &k[i], v: &v[i] });
        let run = |compute| {
            let heads = Heads { count: 2, scale: 1.0 / (d as f32).sqrt(), compute };
            let done = forward(&parts, heads, Mask::default());
            let outputs = [0, 1].map(|i| Some(OutputGrad { out: &done.out[i], dout: &dout[i] }));
            let grads = backward(&outputs, &done.lse, &parts, heads);
            (done.out, grads)
        };
        let ((out, grads), (exact, exact_grads)) = (run(DType::Bf16), run(DType::F32));
        for i in 0..2 {
            assert!(max_error(&out[i], &wide(&exact[i])) < 1.0 / 128.0);
            let (got, want) = (&grads[i], &exact_grads[i]);
            let pairs =
                [(got.q.as_ref(), want.q.as_ref()), (Some(&got.k), Some(&want.k)), (Some(&got.v), Some(&want.v))];
            for (got, want) in pairs {
                assert!(max_error(got.unwrap(), &wide(want.unwrap())) < 1.0 / 64.0, "{first} {rest} {d}");
            }
        }
    }
}
