//! Short runs of all kernels of ptx/: what of them tests see (`mutants`), and what they take (`counts`, and at the sizes of a
//! model `memory`).

mod counts;
mod memory;
mod mutants;

use std::collections::BTreeMap;

use crate::device::DType::{Bf16, F16, F32};
use crate::device::gpu::Gpu;
use crate::device::gpu::semantics;
use crate::device::gpu::vm::Vm;
use crate::device::philox::{Key, Purpose};
use crate::device::{Blocks, DType, Device, Tensor, Wide};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::{self, Chunk};
use crate::ops::attention::{self, ForwardVariant, Heads, Mask, OutputGrad, Part};
use crate::ops::conv2d::{self, Window};
use crate::ops::deformable::{self, Pyramid};
use crate::ops::linear::{self, Adapted, Backward, Branch, Call, InputGrad, Layer, Lora, LoraGrad, Then, rounded};
use crate::ops::pointwise::{self, Curve};
use crate::ops::products::{self, Difference, Weights};
use crate::ops::resample::{Axis, Filter};
use crate::ops::testing::random;
use crate::ops::windows::{self, Windows};
use crate::ops::{
    adamw, affine, combine, copy, cross_attention, depthwise, dequantise, embedding, enlarge, fp8, gate, group_norm,
    layer_norm, lerp, noise, noising, norm, normalise, patchify, pool, position, quantise, resample, resize, rms_norm,
    rope, squeeze, step, timestep,
};

/// Something to do on a GPU, and what comes of it.
struct Exercise {
    name: String,
    run: Box<Run>,
}

type Run = dyn Fn(&Device) -> Vec<Tensor> + Send + Sync;

impl Exercise {
    fn new(name: impl Into<String>, run: impl Fn(&Device) -> Vec<Tensor> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }

    /// The bits that come of it on `vm`, or what is wrong.
    fn bits(&self, vm: Vm) -> Result<Vec<Vec<u8>>, String> {
        let device = Device::Gpu(Gpu::new(Box::new(vm)).expect("kernels"));
        let out: Vec<_> = (self.run)(&device).iter().map(Tensor::to_raw).collect();
        device.check().map(|()| out).map_err(|e| e.to_string())
    }
}

const TYPES: [DType; 3] = [F32, F16, Bf16];
const HALVES: [DType; 2] = [F16, Bf16];

/// Numbers of a type.
fn some(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    rounded(&random(shape, seed), dtype)
}

/// Numbers that an op gives to the host, as a tensor.
fn numbers(values: &[f64]) -> Tensor {
    Tensor::from_bytes(&Device::Cpu, bytemuck::cast_slice(values), &[8 * values.len()])
}

/// AdaLN, layer norm and RMS norm, forward and backward, of `[b, n, d]`.
fn norms(size: [usize; 3], dtype: DType) -> Exercise {
    let [b, _, d] = size;
    let (x, dy, modulation) = (some(&size, 1, dtype), some(&size, 2, dtype), some(&[b, 4 * d], 3, dtype));
    let (weight, bias) = (random(&[d], 4), random(&[d], 5));
    Exercise::new(format!("norms of {size:?} {dtype:?}"), move |device| {
        let [x, dy, modulation, weight, bias] = [&x, &dy, &modulation, &weight, &bias].map(|t| t.to(device));
        let chunk = |index| Chunk { modulation: &modulation, index };
        let (mut dx, mut d_rms) = (copy::owned(&dy), copy::owned(&dy));
        let (mut y_rms, mut inverse) = (copy::owned(&x), rms_norm::room_for_inverse(&x, &weight));
        rms_norm::forward_in_place(&mut y_rms, &weight, 1e-6, Some(&mut inverse));
        let again = rms_norm::forward_again(&x, &weight, &inverse);
        adaln::backward(&mut dx, &dy, &x, chunk(3));
        let gated = adaln::backward_gated(&mut dx, &dy, &x, chunk(3), chunk(2));
        rms_norm::backward(&mut d_rms, &x, &weight, &inverse);
        let y = adaln::forward(&x, chunk(1), chunk(3));
        let mut d_layer = copy::owned(&dy);
        layer_norm::backward(&mut d_layer, &dy, &x, &weight, 1e-5);
        vec![d_layer, y, dx, gated, layer_norm::forward(&x, &weight, &bias, 1e-5), y_rms, again, d_rms, inverse]
    })
}

/// Attention over parts of so many tokens, forward and, where there is no mask, backward.
fn attend(tokens: &'static [usize], (count, d): (usize, usize), dtype: DType, masked: bool) -> Exercise {
    let name = format!("attention of {tokens:?} tokens, {count} heads of {d}, {dtype:?}, masked: {masked}");
    let n = tokens.iter().sum();
    let of = |n: usize, seed| some(&[1, n, count * d], seed + n as u64, dtype);
    let parts: Vec<_> = tokens.iter().map(|n| [1000, 2000, 3000, 4000].map(|seed| of(*n, seed))).collect();
    let bias = random(&[count, n, n], 9);
    Exercise::new(name, move |device| {
        let heads = Heads { count, scale: 1.0 / (d as f32).sqrt(), compute: dtype };
        let parts: Vec<_> = parts.iter().map(|p| p.each_ref().map(|t| t.to(device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
        let bias = bias.to(device);
        let mask = Mask { causal: masked, bias: masked.then_some(&bias) };
        let done = attention::forward(&views, heads, mask);
        let mut all = done.out.clone();
        if !masked && (d <= 128 || parts.len() == 1) {
            let read: Vec<_> =
                done.out.iter().zip(&parts).map(|(out, p)| Some(OutputGrad { out, dout: &p[3] })).collect();
            let none = (d <= 128).then(|| vec![None; parts.len()]);
            for read in [Some(read), none].into_iter().flatten() {
                let grads = attention::backward(&read, &done.lse, &views, heads);
                all.extend(grads.into_iter().flat_map(|g| [g.q, Some(g.k), Some(g.v)]).flatten());
            }
        }
        all.push(done.lse);
        all
    })
}

/// Attention on Hopper, forward alone: by the kernel of choice or one of the others.
fn attend_forward(tokens: &'static [usize], d: usize, dtype: DType, by: Option<ForwardVariant>) -> Exercise {
    // More tiles than there are processors.
    const HEADS: usize = 3;
    let name = by.map_or(String::new(), |v| format!(" by {}", v.name));
    let part = |n: &usize| [1, 2, 3].map(|seed| some(&[1, *n, HEADS * d], seed + 10 * *n as u64, dtype));
    let parts: Vec<_> = tokens.iter().map(part).collect();
    Exercise::new(format!("attention forward of {tokens:?} tokens, heads of {d}, {dtype:?}{name}"), move |device| {
        let heads = Heads { count: HEADS, scale: 1.0 / (d as f32).sqrt(), compute: dtype };
        let parts: Vec<_> = parts.iter().map(|p| p.each_ref().map(|t| t.to(device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v]| Part { q, k, v }).collect();
        if !views[0].q.gpu().is_hopper() {
            return Vec::new();
        }
        let done = match by {
            Some(variant) => attention::forward_by(variant, &views, heads),
            None => attention::forward(&views, heads, Mask::default()),
        };
        done.out.into_iter().chain([done.lse]).collect()
    })
}

/// As [`attend_forward`], by all kernels that are not the one of choice.
fn attend_other_ways(tokens: &'static [usize]) -> impl Iterator<Item = Exercise> {
    let others = attention::forward_variants().into_iter().filter(|v| v.name != "forward");
    others.map(move |v| attend_forward(tokens, v.width as usize, Bf16, Some(v)))
}

/// The ways there are to divide the gradients of attention on Hopper.
fn divide_gradients(tokens: &'static [usize], count: usize) -> Exercise {
    let part = |n: &usize| [1, 2, 3, 4].map(|seed| some(&[1, *n, count * 64], seed + 10 * *n as u64, Bf16));
    let parts: Vec<_> = tokens.iter().map(part).collect();
    Exercise::new(format!("ways to the gradients of attention of {tokens:?} tokens, {count} heads"), move |device| {
        let heads = Heads { count, scale: 0.125, compute: Bf16 };
        let parts: Vec<_> = parts.iter().map(|p| p.each_ref().map(|t| t.to(device))).collect();
        let views: Vec<_> = parts.iter().map(|[q, k, v, _]| Part { q, k, v }).collect();
        if !views[0].q.gpu().is_hopper() {
            return Vec::new();
        }
        let done = attention::forward(&views, heads, Mask::default());
        let read: Vec<_> = done.out.iter().zip(&parts).map(|(out, p)| Some(OutputGrad { out, dout: &p[3] })).collect();
        let grads = attention::backward_variants().iter().flat_map(|variant| {
            [read.clone(), vec![None; parts.len()]]
                .into_iter()
                .flat_map(|read| attention::backward_by(*variant, &read, &done.lse, &views, heads))
        });
        grads.flat_map(|g| [g.q, Some(g.k), Some(g.v)]).flatten().collect()
    })
}

/// A convolution of an image `[b, h, w, inputs]` and of it doubled; the image of one type and the weight of another.
fn convolve([b, h, w, inputs]: [usize; 4], outputs: usize, of_x: DType, of_w: DType) -> Exercise {
    let name = format!("conv2d of {b}x{h}x{w}, {inputs} to {outputs} channels, {of_x:?} by {of_w:?}");
    let (x, weight) = (some(&[b, h, w, inputs], 1, of_x), some(&[outputs, inputs, 3, 3], 2, of_w));
    let (bias, add) = (random(&[outputs], 3), some(&[b, h, w, outputs], 4, of_x));
    Exercise::new(name, move |device| {
        let [x, weight, bias, add] = [&x, &weight, &bias, &add].map(|t| t.to(device));
        let y = conv2d::forward(&x, &conv2d::arranged(&weight), &bias, Window::same(3), Some(&add));
        let doubled = conv2d::doubled(&x, &conv2d::folded(&weight), &bias);
        vec![y, doubled, conv2d::turned(&weight), conv2d::turned_folded(&weight)]
    })
}

/// A `kernel x kernel` convolution of an image `[b, h, w, inputs]` in all tiles that Hopper has, with and without something
/// added, and of it doubled.
fn convolve_in_every_form([b, h, w, inputs]: [usize; 4], outputs: usize, kernel: usize, dtype: DType) -> Exercise {
    let name =
        format!("conv2d of {b}x{h}x{w}, {inputs} to {outputs} channels, {kernel}x{kernel}, in every form, {dtype:?}");
    let (x, weight) = (some(&[b, h, w, inputs], 1, dtype), some(&[outputs, inputs, kernel, kernel], 2, dtype));
    let (bias, add) = (random(&[outputs], 3), some(&[b, h, w, outputs], 4, dtype));
    Exercise::new(name, move |device| {
        if !matches!(device, Device::Gpu(gpu) if gpu.is_hopper()) {
            return Vec::new();
        }
        let [x, weight, bias, add] = [&x, &weight, &bias, &add].map(|t| t.to(device));
        let (ready, same) = (conv2d::arranged(&weight), Some(Window::same(kernel)));
        let mut all = conv2d::in_every_form(&x, &ready, &bias, same, Some(&add));
        all.extend(conv2d::in_every_form(&x, &ready, &bias, same, None));
        if kernel == 3 {
            all.extend(conv2d::in_every_form(&x, &conv2d::folded(&weight), &bias, None, None));
        }
        all
    })
}

fn normalise_groups([b, h, w, channels]: [usize; 4], groups: usize, dtype: DType) -> Exercise {
    let (x, weight, bias) = (some(&[b, h, w, channels], 1, dtype), random(&[channels], 2), random(&[channels], 3));
    Exercise::new(format!("group norm of {b}x{h}x{w}x{channels} in {groups} groups, {dtype:?}"), move |device| {
        let (x, weight, bias) = (x.to(device), weight.to(device), bias.to(device));
        let norm = group_norm::Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        let y = group_norm::forward(&x, norm, true);
        let mut dx = copy::owned(&y);
        group_norm::backward(&mut dx, &y, &x, norm, true);
        vec![y, dx]
    })
}

/// A layer with factors of `rank`, forward and backward: `m` rows of `k` to `n`.
fn layer([m, k, n, rank]: [usize; 4], dtype: DType, wide: Option<Wide>) -> Exercise {
    let (x, dy, w) = (some(&[m, k], 1, dtype), some(&[m, n], 2, dtype), some(&[n, k], 3, dtype).multiplied(wide));
    let (bias, a, b) = (random(&[n], 4), random(&[rank, k], 5), random(&[n, rank], 6));
    let how = wide.map_or(format!("{dtype:?}"), |wide| format!("{wide:?}"));
    Exercise::new(format!("linear of {m} rows of {k} to {n}, rank {rank}, {how}"), move |device| {
        let [x, dy, w, bias, a, b] = [&x, &dy, &w, &bias, &a, &b].map(|t| t.to(device));
        let merged = linear::merge(&w, &a, &b, 0.3);
        let lora = Lora { samples: 0..m, a, b, scale: 0.3 };
        let layer = Adapted { layer: Layer { weight: &w, bias: Some(&bias) }, lora: std::slice::from_ref(&lora) };
        let y = linear::forward(&x, layer, Then::Add(&dy));
        let mut dx = x.scratch_like(&[m, k]);
        let mut flat = Tensor::zeros(device, &[rank * (k + n)]);
        let grad = LoraGrad { flat: &mut flat, a: 0, b: rank * k };
        linear::backward(&dy, &w, Some(&x), Some(&lora), Some(grad), InputGrad::Overwrite(&mut dx));
        vec![y, dx, flat, merged]
    })
}

/// A layer in fp8 with factors of `rank`, which only Hopper has: `m` rows of `k` to `n`, and what may follow it.
fn layer_in_fp8([m, k, n, rank]: [usize; 4]) -> Exercise {
    let (x, w, bias) = (some(&[1, m, k], 1, Bf16), random(&[n, k], 2), random(&[n], 3));
    let (residual, gate) = (some(&[1, m, n], 4, Bf16), some(&[1, n], 5, Bf16));
    let (a, b) = (random(&[rank, k], 6), random(&[n, rank], 7));
    Exercise::new(format!("fp8 of {m} rows of {k} to {n}, rank {rank}"), move |device| {
        if fp8::check(device, Bf16).is_err() {
            return Vec::new();
        }
        let [x, w, bias, residual, gate, a, b] = [&x, &w, &bias, &residual, &gate, &a, &b].map(|t| t.to(device));
        let (weight, rows) = (fp8::quantise(&w), fp8::quantise(&x));
        let lora = Lora { samples: 0..1, a, b, scale: 0.3 };
        let plain = fp8::Layer { weight: &weight, bias: Some(&bias), lora: None };
        let gated = Then::AddGated { residual: &residual, gate: Chunk { modulation: &gate, index: 0 } };
        let mut all: Vec<_> = TYPES.map(|t| fp8::quantise(&copy::cast(&x, t)).scales).into();
        all.push(fp8::forward(&x, &rows, plain, Then::Nothing));
        all.push(fp8::forward(&x, &rows, fp8::Layer { lora: Some(&lora), ..plain }, gated));
        all
    })
}

/// Layers of three inputs, forward and backward in groups, of ranks that fill every number of panels of the kernels: `m` rows
/// of `k` to `n`.
fn group([m, k, n]: [usize; 3], dtype: DType) -> Exercise {
    const RANKS: [&[usize]; 3] = [&[8, 32, 5, 140, 40], &[8, 32, 70], &[4]];
    let (x, dy, w) = (some(&[2, m / 2, k], 1, dtype), some(&[2, m / 2, n], 2, dtype), some(&[n, k], 3, dtype));
    let factors = RANKS.map(|ranks| ranks.iter().map(|r| [random(&[*r, k], *r as u64), random(&[n, *r], 1)]));
    let factors = factors.map(Iterator::collect::<Vec<_>>);
    let head = random(&[n / 4], 4);
    Exercise::new(format!("linear in groups, {m} rows of {k} to {n}, {dtype:?}"), move |device| {
        let [x, dy, w, head] = [&x, &dy, &w, &head].map(|t| t.to(device));
        let inputs = [copy::owned(&x), copy::owned(&x), copy::owned(&x)];
        let lora = |[a, b]: &[Tensor; 2]| Lora { samples: 0..2, a: a.to(device), b: b.to(device), scale: 0.3 };
        let lora = factors.each_ref().map(|all| all.iter().map(lora).collect::<Vec<_>>());
        let then = [Then::Normalise { weight: &head, eps: 1e-6 }, Then::Activate(Activation::GeluTanh), Then::Nothing];
        let (layer, kept) = (Layer { weight: &w, bias: None }, 1);
        let calls = inputs.iter().zip(&lora).zip(then).flat_map(|((x, lora), then)| {
            lora.chunks(1).map(move |lora| Call { x, layer: Adapted { layer, lora }, then, kept })
        });
        let outputs = linear::forward_group(&calls.collect::<Vec<_>>());
        let mut out: Vec<Tensor> =
            outputs.into_iter().flat_map(|o| [Some(o.y), Some(o.hidden), o.inverse_rms]).flatten().collect();

        let mut length = 0;
        let mut place = |lora: &Lora| {
            let first = length;
            length += lora.a.len() + lora.b.len();
            [first, first + lora.a.len()]
        };
        let places = lora.each_ref().map(|all| all.iter().map(&mut place).collect::<Vec<_>>());
        let branches = lora.iter().zip(&places).map(|(all, places)| {
            let each = all.iter().zip(places);
            each.map(|(lora, at)| Branch { dy: &dy, weight: &w, lora: Some(lora), grad: Some(*at) }).collect()
        });
        let mut flat = Tensor::zeros(device, &[length]);
        let mut dx = inputs.each_ref().map(copy::owned);
        let [first, second, third] = &mut dx;
        let into =
            [InputGrad::Overwrite(first), InputGrad::Add(second), InputGrad::ThroughGelu { dx: third, hidden: &x }];
        let calls = inputs.iter().zip(branches).zip(into);
        let calls = calls.map(|((x, branches), dx)| Backward { x: Some(x), branches, dx });
        linear::backward_group(calls.collect(), Some(&mut flat));
        out.extend(dx);
        out.push(flat);
        out
    })
}

/// Products with all that may follow them, as the kernels for Hopper do them.
fn listed_products(dtype: DType, is_even: bool) -> Vec<Exercise> {
    use linear::tests::hopper;
    let lists = hopper::lists(dtype, is_even);
    // Those of the widest tiles, for which there are most variants.
    let few = lists[if is_even { 2 } else { 4 }].clone();
    let variants = linear::variants().into_iter().filter(|v| dtype == Bf16 && v.name.contains("_s"));
    let by = variants.map(|v| (Some(v), few.clone())).collect::<Vec<_>>();
    let all = lists.into_iter().map(|list| (None, list)).chain(by).enumerate();
    all.map(|(i, (by, list))| {
        let name = format!("list {i} of products, {dtype:?}, even: {is_even}");
        Exercise::new(name, move |device| hopper::exercise(device, by, &list))
    })
    .collect()
}

/// Sums over `[rows, length]`: squares, also from where no vector begins, products of 1 to 4 differences, residuals of a step.
fn sums(rows: usize, length: usize, dtype: DType) -> Exercise {
    let all = [1, 2, 3, 4].map(|seed| some(&[rows, length], seed, dtype));
    let keys: Vec<_> = (0..rows).map(|i| Key { prompt: i as u32, ..Key::new(3, Purpose::SamplerNoise) }).collect();
    Exercise::new(format!("sums of {rows}x{length}, {dtype:?}"), move |device| {
        let [a, b, c, d] = all.each_ref().map(|t| t.to(device));
        let unaligned = a.view(1, &[a.len() - 1]);
        let mut found = vec![
            norm::sum_of_squares(&a),
            norm::sum_of_squares(&unaligned),
            norm::first_non_finite(&b).map_or(-1.0, |(at, _)| at as f64),
        ];
        let differences = [(&a, &b), (&b, &c), (&c, &d), (&d, &a)];
        let differences =
            differences.map(|(x, y)| Difference { terms: vec![(Weights::All(1.0), x), (Weights::All(-0.5), y)] });
        for n in 1..=differences.len() {
            let all = products::forward(&differences[..n]);
            found.extend(all.iter().flat_map(|p| p.gram.iter().flatten().chain(&p.l1)));
        }
        let coefficients = vec![vec![0.5; rows]; differences.len()];
        let combined = combine::forward(&differences, &coefficients);
        let inputs = step::Inputs { x: &a, velocity: &b, guidance: None, history: [Some(&c), Some(&d)], noise: &keys };
        let row = step::Row { a: 0.9, b: -0.125, history: [0.5, -0.25], s: 0.3 };
        let next = step::forward(inputs, row);
        found.extend(step::residuals(&next, inputs, row));
        vec![combined, next, numbers(&found)]
    })
}

/// The kernels without a barrier that are not launched by the way.
fn flat(dtype: DType) -> Exercise {
    let (b, n, d) = (2, 64, 256);
    let (x, y, modulation) = (some(&[b, n, d], 1, dtype), some(&[b, n, d], 2, dtype), some(&[b, 2 * d], 3, dtype));
    let table = random(&[n, d], 4);
    Exercise::new(format!("flat kernels, {dtype:?}"), move |device| {
        let [x, y, modulation] = [&x, &y, &modulation].map(|t| t.to(device));
        let mut out = Vec::new();
        for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            let mut of = copy::owned(&x);
            activation::forward(&mut of, activation);
            activation::backward(&mut of, &y, activation);
            out.push(of);
        }
        let mut of = copy::owned(&x);
        activation::multiply(&mut of, &y);
        activation::add(&mut of, &y);
        lerp::forward(&mut of, &y, 0.75);
        for of_table in TYPES {
            position::add(&mut of, &rounded(&table, of_table).to(device), &[0]);
            out.extend([
                copy::cast(&x, of_table),
                embedding::forward(&[5, 3, 8], &rounded(&table, of_table).to(device)),
            ]);
        }
        out.push(of);
        out.push(embedding::by_column(&(0..64).collect::<Vec<_>>(), &rounded(&table, dtype).to(device)));
        let half = affine::Affine { scale: 0.5, ..Default::default() };
        let mut d = affine::forward(&x, half);
        affine::backward(&mut d, &x, half);
        out.push(d);
        out.push(gate::backward(&x, Chunk { modulation: &modulation, index: 1 }));
        out.push(noising::forward(&x, &y, &[0.25, 0.75]));
        let pictures = quantise::forward(&y.view(0, &[1, 32, 32, 3]));
        out.push(resize::bicubic(&pictures, 20, 24));
        out.push(normalise::forward(&pictures, [2, 2], [24, 24], [0.5; 3], [0.25; 3]));
        let patches = patchify::Patches { channels: 16, size: 2, grid: (16, 16) };
        let latent = x.view(0, &[1, 16, 32, 32]);
        let tokens = patchify::forward(&latent, &patches, patchify::Order::ChannelFirst);
        out.extend([patchify::inverse(&tokens, &patches, patchify::Order::ChannelFirst), tokens]);
        out
    })
}

/// The ops that only networks of rewards use, of images `[2, h, w, c]`; `c` is even.
fn look(h: usize, w: usize, c: usize) -> Exercise {
    let image = |channels: usize, seed| random(&[2, h, w, channels], seed);
    let (x, fourfold, of_points) = (image(c, 1), image(4 * c, 2), random(&[24, c], 3));
    let of_windows = [3, 5].map(|k| random(&[c, 1, k, k], 4));
    let (bias, levels) = (random(&[c.max(24)], 5), [[h, w], [h / 2, w / 2]]);
    let tokens = Pyramid(&levels).tokens();
    let [values, offsets, shares] = [c, 12, 6].map(|width| random(&[2, tokens, width], width as u64));
    Exercise::new(format!("ops of rewards, {h}x{w}x{c}"), move |device| {
        let [x, fourfold, of_points, bias] = [&x, &fourfold, &of_points, &bias].map(|t| t.to(device));
        let mut out = Vec::new();
        for outputs in [24, 8] {
            let weight = pointwise::Weight::of(&of_points.slice(0..outputs));
            let bias = bias.view(0, &[outputs]);
            out.push(pointwise::forward(&x, &weight, Some(&bias), Curve::HardSwish, None));
        }
        for (weight, stride) in of_windows.iter().flat_map(|w| [1, 2].map(|stride| (w, stride))) {
            let weight = depthwise::arranged(&weight.to(device));
            out.push(depthwise::forward(&x, &weight, &bias.view(0, &[c]), [stride; 2], Curve::Relu));
        }
        let mut y = copy::owned(&x);
        pointwise::apply(&mut y, Curve::Silu);
        squeeze::excite(&mut y, &squeeze::means(&x));
        let mut larger = Tensor::zeros(device, &[2, 2 * h, 2 * w, c]);
        enlarge::place(&mut larger, 0, &x, 2);
        enlarge::add(&mut larger, &y, 2);
        let windows = Windows { image: [h, w], size: 4, shift: 2 };
        let parts = windows::partition(&x, &windows);
        windows::add(&mut y, &parts, &windows);
        let [values, offsets, shares] = [&values, &offsets, &shares].map(|t| t.to(device));
        out.push(deformable::forward(&values, &offsets, &shares, Pyramid(&levels), 1));
        for dtype in TYPES {
            let mut turned = copy::owned(&copy::cast(&values, dtype));
            rope::forward(&mut turned, 1, 100.0);
            out.push(turned);
        }
        out.extend([pool::average(&x, [2, 2]), windows::neighbours(&x), resize::bilinear(&x, h / 2, 2 * w)]);
        out.extend([enlarge::unfold(&fourfold), larger, y]);
        out
    })
}

/// Attention of `m` queries to `n` keys of another sequence, in a head of `d`, of which a query sees a part.
fn attend_across([m, n, d]: [usize; 3]) -> Exercise {
    let [q, k, v, sees] = [(m, d, 1), (n, d, 2), (n, d, 3), (n, m, 4)].map(|(n, w, seed)| random(&[2, n, w], seed));
    Exercise::new(format!("attention of {m} to {n} in heads of {d}"), move |device| {
        let heads = Heads { count: 1, scale: 0.25, compute: F32 };
        let [q, k, v, sees] = [&q, &k, &v, &sees].map(|t| t.to(device));
        vec![cross_attention::forward(&q, &k, &v, heads, Some(&sees))]
    })
}

/// The kernels of which there is one for all types.
fn others() -> Exercise {
    Exercise::new("other kernels", |device| {
        let mut out = vec![timestep::forward(device, &[0.5, 0.25], 256)];
        for blocks in Blocks::ALL {
            let bytes: Vec<u8> = (0..blocks.bytes() * 256).map(|i| (i * 37 % 64) as u8).collect();
            let shape = [16, blocks.elements() * 16];
            let x = Tensor::from_raw(device, DType::Blocks(blocks), 1.0, &bytes, &shape);
            out.extend([dequantise::forward(&x), dequantise::operand(&x)]);
        }
        // Rows of every unit of copies.
        for unit in [1, 2, 4, 8, 16] {
            let bytes = |shape: &[usize]| Tensor::from_bytes(device, &vec![7; shape.iter().product()], shape);
            let mut of = bytes(&[2, 64, 16 * unit]);
            copy::block_into(&mut of, 1, unit, &bytes(&[2, 32, 8 * unit]));
            let rows: Vec<_> = (0..64).map(|i| i * 7 % 64).collect();
            out.extend([copy::gather(&of.view(0, &[64, 3 * unit]), &rows), of]);
        }
        let mut params = random(&[4096], 1).to(device);
        let settings = adamw::AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.1, eps: 1e-8 };
        let mut moments = adamw::Moments::zeros_like(&params);
        adamw::step(&settings, &mut params, &random(&[4096], 2).to(device), 0.5, &mut moments);
        let (rows, columns) = (Axis::resized(32, 20, Filter::Cubic), Axis::resized(32, 24, Filter::Linear));
        let planes = random(&[1, 3, 32, 32], 3).to(device);
        out.push(resample::forward(&planes, &rows, &columns, [0.5; 3], [0.25; 3]));
        out.extend([params, noise::normal(device, &[Key::new(1, Purpose::InitialLatent)], &[1, 4096])]);
        out
    })
}

/// The kernels that run instructions one by one, where a device can run them.
fn instructions() -> impl Iterator<Item = Exercise> {
    semantics::checks().map(|check| {
        Exercise::new(format!("semantics: {}", check.name), |device| {
            let Device::Gpu(gpu) = device else { panic!("{device:?} is no GPU") };
            if check.fits(gpu) { check.outputs(device, 256) } else { Vec::new() }
        })
    })
}

/// Whole tiles and vectors, as in large models, of all kernels.
fn even() -> Vec<Exercise> {
    let mut all = vec![others(), convolve([1, 16, 16, 64], 64, F32, F32), convolve([1, 16, 16, 64], 16, F32, F32)];
    all.extend([32, 64, 128, 512].map(|d| attend(&[128], (1, d), F32, false)));
    all.push(layer([128, 128, 128, 32], F32, None));
    all.extend([64, 256].map(|n| layer([128, n, n, 32], F32, Some(Wide::Tf32))));
    all.push(layer_in_fp8([256, 256, 256, 32]));
    all.extend(instructions());
    all.extend([look(16, 16, 64), look(16, 16, 6)]);
    all.extend([32, 64, 128].map(|d| attend_across([64, 128, d])));
    all.push(divide_gradients(&[384], 1));
    all.extend(attend_other_ways(&[256]));
    for dtype in TYPES {
        all.extend([[2, 16, 128], [2, 8, 384], [2, 16, 1024], [1, 2, 12800]].map(|size| norms(size, dtype)));
        all.extend([sums(2, 4096, dtype), flat(dtype)]);
        all.push(normalise_groups([1, 16, 16, 128], 32, dtype));
    }
    for dtype in HALVES {
        for d in [32, 64, 80, 128] {
            all.push(attend(&[256], (1, d), dtype, false));
            all.push(attend(&[256], (1, d), dtype, true));
        }
        all.push(attend(&[256], (1, 96), dtype, false));
        for (inputs, outputs) in [(64, 128), (64, 32), (4, 32)] {
            all.extend([dtype, F32].map(|of_x| convolve([1, 16, 16, inputs], outputs, of_x, dtype)));
        }
        all.push(convolve_in_every_form([1, 16, 16, 64], 256, 3, dtype));
        all.push(attend(&[256], (1, 512), dtype, false));
        all.extend([64, 256].map(|n| layer([256, n, n, 32], dtype, None)));
        all.push(group([256, 256, 256], dtype));
        all.extend(listed_products(dtype, true));
    }
    all
}

/// Parts of tiles and of vectors; rings that are not filled and rings that wrap; of all kernels that wait for something.
fn ragged() -> Vec<Exercise> {
    let mut all = vec![convolve([1, 9, 9, 20], 17, F32, F32), convolve([1, 9, 9, 20], 7, F32, F32)];
    all.extend([20, 60, 96, 136].map(|d| attend(&[70, 5], (1, d), F32, false)));
    all.extend([20, 60, 96].map(|d| attend(&[70], (1, d), F32, true)));
    all.push(attend(&[5, 3], (1, 500), F32, false));
    all.extend(instructions());
    all.extend([look(9, 11, 36), look(30, 20, 6)]);
    all.extend([20, 60, 96].map(|d| attend_across([70, 130, d])));
    all.extend([divide_gradients(&[3, 260], 3), divide_gradients(&[9], 12)]);
    all.extend(attend_other_ways(&[3, 70, 3, 3]));
    for dtype in TYPES {
        all.extend([[2, 3, 304], [2, 3, 301], [1, 2, 2440], [1, 2, 6160]].map(|size| norms(size, dtype)));
        all.extend([sums(2, 1025, dtype), sums(1, 4097, dtype)]);
        all.extend([24, 6].map(|channels| normalise_groups([2, 9, 33, channels], 3, dtype)));
        all.extend([[70, 200, 67, 5], [3, 8, 8, 1]].map(|size| layer(size, dtype, None)));
    }
    let tf32 = [[20, 200, 264, 32], [130, 257, 40, 5], [20, 264, 200, 5], [130, 40, 257, 5], [70, 200, 67, 5]];
    all.extend(tf32.map(|size| layer(size, F32, Some(Wide::Tf32))));
    all.extend([[300, 656, 264, 5], [300, 144, 264, 5]].map(layer_in_fp8));
    for dtype in HALVES {
        for d in [24, 56, 80, 120] {
            all.push(attend(&[150, 3], (1, d), dtype, false));
            all.push(attend(&[9], (1, d), dtype, false));
            all.push(attend(&[150], (1, d), dtype, true));
        }
        all.extend([64, 80, 96, 128].map(|d| attend(&[3, 260], (3, d), dtype, false)));
        // Several tiles for each processor, of fewer steps than a ring has stages.
        all.extend([64, 80, 96, 128].map(|d| attend(&[9], (12, d), dtype, false)));
        all.extend([64, 80, 96, 128].map(|d| attend_forward(&[3, 70, 3, 3], d, dtype, None)));
        all.extend([64, 128].map(|d| attend(&[257], (2, d), dtype, true)));
        // Groups without queries in tiles that others come after.
        all.extend([64, 128].map(|d| attend(&[9], (5, d), dtype, true)));
        for (inputs, outputs) in [(72, 40), (72, 17), (13, 17), (8, 40), (8, 3)] {
            all.extend([dtype, F32].map(|of_x| convolve([1, 9, 9, inputs], outputs, of_x, dtype)));
        }
        all.extend([attend(&[300], (1, 256), dtype, false), attend(&[5], (2, 256), dtype, false)]);
        all.extend([3, 1].map(|kernel| convolve_in_every_form([2, 9, 33, 8], 40, kernel, dtype)));
        all.extend([[20, 200, 264, 32], [20, 264, 8, 1], [130, 40, 257, 5]].map(|size| layer(size, dtype, None)));
        all.push(group([600, 72, 20], dtype));
        all.extend(listed_products(dtype, false));
    }
    all
}
