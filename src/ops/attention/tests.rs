mod hopper_backward;
mod hopper_forward;

use std::ops::Range;

use super::*;
use crate::device::Device;
use crate::device::gpu::{HOPPER, PORTABLE};
use crate::ops::copy::cast;
use crate::ops::testing::{
    check_gradient, check_precision, devices, max_error, on_another_gpu, on_vm_of, random, wide,
};

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
    let heads = |compute| Heads { compute, ..single(2, 0.5) };
    for (device, dtype) in devices().into_iter().zip([DType::F32; 2]).chain([(devices()[1].clone(), DType::Bf16)]) {
        let heads = heads(dtype);
        let part = |seed| cut(&random(&[2, 11, 16], seed), 7).map(|t| cast(&t, dtype).to(&device));
        let [q, k, v, dout] = [1, 2, 3, 4].map(part);
        let parts = [0, 1].map(|i| Part { q: &q[i], k: &k[i], v: &v[i] });
        let done = forward(&parts, heads, Mask::default());
        let read = Some(OutputGrad { out: &done.out[0], dout: &dout[0] });
        let zeros = cast(&Tensor::zeros(&device, v[1].shape()), dtype);
        let zero = Some(OutputGrad { out: &done.out[1], dout: &zeros });
        let [unread, zero] = [None, zero].map(|second| backward(&[read, second], &done.lse, &parts, heads));
        assert!(unread[1].q.is_none());
        for i in 0..2 {
            for (a, b) in [(&unread[i].k, &zero[i].k), (&unread[i].v, &zero[i].v)] {
                assert!(max_error(a, &wide(b)) < 1e-6);
            }
        }
        for grad in backward(&[None, None], &done.lse, &parts, heads) {
            assert!(grad.k.to_host().into_iter().chain(grad.v.to_host()).all(|g| g == 0.0));
        }
        device.check().unwrap();
    }
}

#[test]
fn rounding_operands_to_bf16_moves_results_and_gradients_by_no_more_than_it_must() {
    // An operand's rounding is at most 2⁻⁹ of it, so that of two moves a score by at most 2⁻⁸ of the sum of its products'
    // sizes, and a probability by as much of itself; the second product adds its own two. The gradients have three products.
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
        // Of every token and head; which attend to one another is not asked.
        let sizes = |t: &[Tensor; 2]| -> Vec<Vec<f64>> {
            let of = |t: &Tensor| wide(t).chunks(d).map(<[f64]>::to_vec).collect::<Vec<_>>();
            t.iter().flat_map(of).collect()
        };
        let (queries, keys) = (sizes(&q), sizes(&k));
        let size = |q: &[f64], k: &[f64]| q.iter().zip(k).map(|(q, k)| (q * k).abs()).sum::<f64>();
        let score = queries.iter().flat_map(|q| keys.iter().map(|k| size(q, k))).fold(0.0, f64::max);
        let bound = (score / (d as f64).sqrt() + 1.0) / 256.0;
        let ((out, grads), (exact, exact_grads)) = (run(DType::Bf16), run(DType::F32));
        for i in 0..2 {
            assert!(max_error(&out[i], &wide(&exact[i])) < bound);
            let (got, want) = (&grads[i], &exact_grads[i]);
            let pairs =
                [(got.q.as_ref(), want.q.as_ref()), (Some(&got.k), Some(&want.k)), (Some(&got.v), Some(&want.v))];
            for (got, want) in pairs {
                assert!(max_error(got.unwrap(), &wide(want.unwrap())) < 1.5 * bound, "{first} {rest} {d}");
            }
        }
    }
}

/// Operands of `[b, n, heads·d]` for parts of `n` tokens, with their gradients, whose scores are near -128: a key that a mask
/// forgets, of which the score is 0, would outweigh all others.
struct Case {
    heads: Heads,
    dtype: DType,
    /// Queries, keys, values and gradients of each part.
    parts: Vec<[Tensor; 4]>,
}

impl Case {
    fn new(b: usize, tokens: &[usize], (count, d): (usize, usize), dtype: DType, compute: DType) -> Self {
        let scale = 1.0 / (d as f32).sqrt();
        let far = (128.0 / (scale * d as f32)).sqrt();
        let part = |(i, n): (usize, &usize)| {
            let seed = |j: usize| (1000 * d + 100 * i + j) as u64;
            [0, 1, 2, 3].map(|j| {
                let x = random(&[b, *n, count * d], seed(j));
                let shifted = |sign: f32| x.host().iter().map(|x| 0.5 * x + sign * far).collect::<Vec<_>>();
                let x = match j {
                    0 => Tensor::from_slice(&Device::Cpu, &shifted(1.0), x.shape()),
                    1 => Tensor::from_slice(&Device::Cpu, &shifted(-1.0), x.shape()),
                    _ => x,
                };
                cast(&x, dtype)
            })
        };
        let parts = tokens.iter().enumerate().map(part).collect();
        Self { heads: Heads { count, scale, compute }, dtype, parts }
    }

    fn name(&self) -> String {
        let tokens: Vec<_> = self.parts.iter().map(|p| p[0].dim(1)).collect();
        format!("{tokens:?} tokens, heads of {}, {:?} multiplied in {:?}", self.d(), self.dtype, self.heads.compute)
    }

    fn n(&self) -> usize {
        self.parts.iter().map(|p| p[0].dim(1)).sum()
    }

    /// Results, logarithms of denominators and, if asked for, gradients to queries, keys and values, of samples `samples`;
    /// each is all parts' one after another.
    fn run(&self, device: &Device, samples: Range<usize>, mask: Mask, with_gradients: bool) -> Vec<Vec<Tensor>> {
        let parts: Vec<_> =
            self.parts.iter().map(|p| p.each_ref().map(|t| t.slice(samples.clone()).to(device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
        let done = forward(&views, self.heads, mask);
        if !with_gradients {
            return vec![done.out, vec![done.lse]];
        }
        let outputs: Vec<_> =
            done.out.iter().zip(&parts).map(|(out, p)| Some(OutputGrad { out, dout: &p[3] })).collect();
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for grad in backward(&outputs, &done.lse, &views, self.heads) {
            dq.push(grad.q.expect("a gradient to the queries of a part that was read"));
            dk.push(grad.k);
            dv.push(grad.v);
        }
        vec![done.out, vec![done.lse], dq, dk, dv]
    }

    /// A tensor of all parts, sample by sample.
    fn whole(&self, of: usize) -> Vec<f64> {
        let parts: Vec<_> = self.parts.iter().map(|p| p[of].clone()).collect();
        wide(&together(&parts))
    }

    /// What [`Case::run`] should give, in f64 but for `operand`, which what is multiplied is rounded with, and `result`.
    fn model(&self, mask: Mask, operand: impl Fn(f64) -> f64, result: impl Fn(f64) -> f64) -> [Vec<f64>; 5] {
        let (n, count, scale) = (self.n(), self.heads.count, f64::from(self.heads.scale));
        let [q, k, v, dout] = [0, 1, 2, 3].map(|of| self.whole(of));
        let [mul_q, mul_k, mul_v, mul_dout] =
            [&q, &k, &v, &dout].map(|x| x.iter().map(|x| operand(*x)).collect::<Vec<_>>());
        let bias = mask.bias.map(wide);
        let d = self.parts[0][0].dim(2) / count;
        let [mut out, mut dq, mut dk, mut dv] = [0; 4].map(|_| vec![0.0; q.len()]);
        let mut lse = Vec::new();
        for (b, h) in (0..q.len() / (n * count * d)).flat_map(|b| (0..count).map(move |h| (b, h))) {
            let at = |row: usize| ((b * n + row) * count + h) * d;
            let dot = |x: &[f64], i: usize, y: &[f64], j: usize| -> f64 {
                x[at(i)..][..d].iter().zip(&y[at(j)..][..d]).map(|(x, y)| x * y).sum()
            };
            for i in 0..n {
                let score = |j: usize| match &bias {
                    _ if mask.causal && j > i => f64::NEG_INFINITY,
                    bias => scale * dot(&mul_q, i, &mul_k, j) + bias.as_ref().map_or(0.0, |b| b[(h * n + i) * n + j]),
                };
                let scores: Vec<_> = (0..n).map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                lse.push(most + total.ln());
                for c in 0..d {
                    let sum: f64 = (0..n).map(|j| operand((scores[j] - most).exp()) * mul_v[at(j) + c]).sum();
                    out[at(i) + c] = result(sum / total);
                }
                let delta = dot(&out, i, &dout, i);
                for j in 0..n {
                    let p = (scores[j] - most).exp() / total;
                    let (ds, p) = (operand(p * (dot(&mul_dout, i, &mul_v, j) - delta)), operand(p));
                    for c in 0..d {
                        dv[at(j) + c] += p * mul_dout[at(i) + c];
                        dk[at(j) + c] += scale * ds * mul_q[at(i) + c];
                        dq[at(i) + c] += scale * ds * mul_k[at(j) + c];
                    }
                }
            }
        }
        let [dq, dk, dv] = [dq, dk, dv].map(|x| x.into_iter().map(&result).collect());
        [out, lse, dq, dk, dv]
    }

    fn d(&self) -> usize {
        self.parts[0][0].dim(2) / self.heads.count
    }

    /// What is multiplied is rounded to this.
    fn product(&self) -> DType {
        match (self.dtype, self.heads.compute) {
            (_, DType::F32) => DType::F32,
            _ if !self.d().is_multiple_of(8) => DType::F32,
            (DType::F32, compute) => compute,
            (own, _) => own,
        }
    }

    /// Fails unless each of `all`, what [`Case::run`] gave, is as exact as arithmetic of the same precision.
    fn check(&self, mask: Mask, all: &[Vec<Vec<Tensor>>; 2]) {
        let (b, name) = (self.parts[0][0].dim(0), self.name());
        let exact = self.model(mask, |x| x, |x| x);
        let like = |x: Vec<f64>| {
            Tensor::from_slice(&Device::Cpu, &x.iter().map(|x| *x as f32).collect::<Vec<_>>(), &[x.len()])
        };
        let reference = if self.product() == DType::F32 && self.dtype == DType::F32 {
            self.run(&Device::Cpu, 0..b, mask, all[0].len() > 2).iter().map(|parts| together(parts)).collect::<Vec<_>>()
        } else {
            self.model(mask, rounding(self.product()), rounding(self.dtype)).map(like).into()
        };
        let each = all.iter().flat_map(|got| ["out", "lse", "dq", "dk", "dv"].into_iter().zip(got).enumerate());
        for (i, (what, got)) in each {
            if what == "lse" {
                // A sum of d products in f32 errs by less than d roundings of its terms; e^x and what follows add a few.
                let (error, allowed) =
                    (max_error(&got[0], &wide(&reference[i])), (self.d() + 16) as f64 * 2f64.powi(-24));
                assert!(error < allowed, "{name}: lse off by {error:e}, allowed {allowed:e}");
            } else {
                assert!(got.iter().all(|t| t.dtype() == self.dtype));
                check_precision(&format!("{what} of {name}"), &together(got), &reference[i], &exact[i]);
            }
        }
    }
}

/// Runs all cases on interpreted GPUs, with and without gradients, and checks them.
fn check(cases: &[(Case, Mask, bool)]) {
    check_on(HOPPER, cases);
}

/// As [`check`], with the kernels for a compute capability.
fn check_on(capability: (u32, u32), cases: &[(Case, Mask, bool)]) {
    let run_all = |device: &Device| {
        let run = |(case, mask, with_gradients): &(Case, Mask, bool)| {
            let bias = mask.bias.map(|b| b.to(device));
            let mask = Mask { bias: bias.as_ref(), ..*mask };
            case.run(device, 0..case.parts[0][0].dim(0), mask, *with_gradients).into_iter().flatten()
        };
        cases.iter().flat_map(run).collect()
    };
    let (got, another) = (on_vm_of(capability, run_all), on_another_gpu(run_all));
    let (mut got, mut another) = (got.into_iter(), another.into_iter());
    for (case, mask, with_gradients) in cases {
        let parts = case.parts.len();
        let counts = [parts, 1, parts, parts, parts];
        let counts = if *with_gradients { &counts[..] } else { &counts[..2] };
        let got = [&mut got, &mut another].map(|all| counts.iter().map(|n| all.take(*n).collect()).collect::<Vec<_>>());
        case.check(*mask, &got);
    }
}

fn rounding(dtype: DType) -> impl Fn(f64) -> f64 {
    move |x| match dtype {
        DType::F16 => half::f16::from_f32(x as f32).to_f64(),
        DType::Bf16 => half::bf16::from_f32(x as f32).to_f64(),
        _ => x,
    }
}

/// Parts as one tensor of f32 on the CPU.
fn together(parts: &[Tensor]) -> Tensor {
    let parts: Vec<_> = parts.iter().map(|t| Tensor::from_slice(&Device::Cpu, &t.to_host(), t.shape())).collect();
    parts[1..].iter().fold(parts[0].clone(), |all, part| joined([&all, part]))
}

/// What operands are stored in, and what they are multiplied in.
const TYPES: [(DType, DType); 5] = [
    (DType::F32, DType::F32),
    (DType::Bf16, DType::Bf16),
    (DType::F16, DType::F16),
    (DType::F32, DType::Bf16),
    (DType::Bf16, DType::F32),
];

/// Those that are stored and multiplied in one type, and of them those of tensor cores.
const OWN: &[(DType, DType)] = TYPES.split_at(3).0;
const HALF: &[(DType, DType)] = OWN.split_at(1).1;

/// Tokens of each part, and number and width of heads.
type Sizes = (&'static [usize], (usize, usize));

#[test]
fn kernels_are_as_exact_as_their_operands() {
    const SIZES: [(Sizes, &[(DType, DType)]); 7] = [
        ((&[1], (1, 32)), &TYPES),
        ((&[1, 1], (2, 12)), TYPES.split_at(2).0),
        ((&[17], (2, 64)), &TYPES),
        ((&[65], (1, 80)), HALF),
        ((&[65, 3, 30], (1, 64)), HALF),
        ((&[33, 5], (1, 128)), OWN),
        ((&[150, 31], (1, 32)), OWN),
    ];
    let mut cases = Vec::new();
    for ((tokens, heads), (dtype, compute)) in SIZES.iter().flat_map(|(s, t)| t.iter().map(move |t| (*s, *t))) {
        // The scores of a single token have no gradient but roundings.
        let with_gradients = tokens.len() > 1 || tokens[0] > 1;
        cases.push((Case::new(1, tokens, heads, dtype, compute), Mask::default(), with_gradients));
    }
    // The widest heads, of autoencoders, come in chunks of columns; their gradients are products of whole matrices.
    for (dtype, compute) in [TYPES[0], TYPES[4], TYPES[1]] {
        cases.push((Case::new(1, &[70], (1, 136), dtype, compute), Mask::default(), true));
    }
    cases.push((Case::new(2, &[33], (2, 160), DType::F32, DType::F32), Mask::default(), true));
    // Two groups share the keys, of which the second may have none.
    for (n, heads) in [(&[1], (1, 256)), (&[150], (2, 256)), (&[300], (1, 512))] {
        cases.extend(
            HALF.iter().map(|(dtype, compute)| (Case::new(1, n, heads, *dtype, *compute), Mask::default(), false)),
        );
    }
    check(&cases);
    cases.retain(|(case, ..)| case.product() != DType::F32);
    check_on(PORTABLE, &cases);
}

#[test]
fn kernels_mask_as_they_should() {
    let sizes = [(1, (1, 32)), (65, (2, 64)), (130, (1, 32)), (7, (1, 96))];
    let sizes = sizes.map(|(n, heads)| (n, heads, random(&[heads.0, n, n], 9)));
    let mut cases = Vec::new();
    for ((n, heads, bias), (dtype, compute)) in sizes.iter().flat_map(|s| OWN.iter().map(move |t| (s, *t))) {
        for (causal, bias) in [(true, None), (false, Some(bias)), (true, Some(bias))] {
            cases.push((Case::new(1, &[*n], *heads, dtype, compute), Mask { causal, bias }, false));
        }
    }
    check(&cases);
    cases.retain(|(case, ..)| case.product() != DType::F32);
    check_on(PORTABLE, &cases);
}

#[test]
fn a_sample_s_bits_do_not_depend_on_the_others() {
    let sizes: [(&[usize], _); 2] = [(&[40, 27], (2, 32)), (&[70], (1, 256))];
    for ((tokens, heads), &(dtype, compute)) in sizes.into_iter().flat_map(|s| OWN.iter().map(move |t| (s, t))) {
        let (case, with_gradients) = (Case::new(9, tokens, heads, dtype, compute), true);
        let device = Device::vm(ptxvm::Options::default()).unwrap();
        let all = case.run(&device, 0..9, Mask::default(), with_gradients);
        for i in [0, 4, 8] {
            let alone = case.run(&device, i..i + 1, Mask::default(), with_gradients);
            for (all, alone) in all.iter().flatten().zip(alone.iter().flatten()) {
                let bytes = alone.to_raw();
                assert!(all.to_raw()[i * bytes.len()..][..bytes.len()] == bytes, "{}", case.name());
            }
        }
        device.check().unwrap();
    }
}

#[test]
#[should_panic(expected = "heads of 520; on a GPU at most 512")]
fn heads_too_wide_for_a_kernel_are_a_mistake_that_says_so() {
    let case = Case::new(1, &[1], (1, 520), DType::F32, DType::F32);
    case.run(&Device::vm(ptxvm::Options::default()).unwrap(), 0..1, Mask::default(), false);
}
