//! Short runs of all kernels of ptx/: what of them tests see (`mutants`), and what they take (`counts`, and at the sizes of a
//! model `memory`).

mod counts;
mod memory;
mod mutants;

use std::collections::BTreeMap;

use crate::device::DType::{Bf16, F16, F32};
use crate::device::gpu::Gpu;
use crate::device::gpu::vm::Vm;
use crate::device::philox::{Key, Purpose};
use crate::device::{Blocks, DType, Device, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::adaln::{self, Chunk};
use crate::ops::attention::{self, Heads, Mask, OutputGrad, Part};
use crate::ops::conv2d::{self, Window};
use crate::ops::linear::{self, Adapted, InputGrad, Layer, Lora, LoraGrad, Then, rounded};
use crate::ops::products::{self, Difference, Weights};
use crate::ops::testing::random;
use crate::ops::{
    adamw, affine, combine, copy, dequantise, embedding, gate, group_norm, layer_norm, lerp, noise, noising, norm,
    normalise, patchify, position, quantise, resize, rms_norm, step, timestep,
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
    let [b, n, d] = size;
    let (x, dy, modulation) = (some(&size, 1, dtype), some(&size, 2, dtype), some(&[b, 4 * d], 3, dtype));
    let (weight, bias) = (random(&[d], 4), random(&[d], 5));
    Exercise::new(format!("norms of {size:?} {dtype:?}"), move |device| {
        let [x, dy, modulation, weight, bias] = [&x, &dy, &modulation, &weight, &bias].map(|t| t.to(device));
        let chunk = |index| Chunk { modulation: &modulation, index };
        let (mut dx, mut d_rms) = (copy::owned(&dy), copy::owned(&dy));
        adaln::backward(&mut dx, &dy, &x, chunk(3));
        let gated = adaln::backward_gated(&mut dx, &dy, &x, chunk(3), chunk(2));
        rms_norm::backward(&mut d_rms, &x, &weight, 1e-6);
        let y = adaln::forward(&x, chunk(1), chunk(3));
        vec![y, dx, gated, layer_norm::forward(&x, &weight, &bias, 1e-5), rms_norm::forward(&x, &weight, 1e-6), d_rms]
            .into_iter()
            .map(|t| t.reshape(&[b * n, d]))
            .collect()
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
        if !masked && d <= 128 {
            let read: Vec<_> =
                done.out.iter().zip(&parts).map(|(out, p)| Some(OutputGrad { out, dout: &p[3] })).collect();
            for read in [read, vec![None; parts.len()]] {
                let grads = attention::backward(&read, &done.lse, &views, heads);
                all.extend(grads.into_iter().flat_map(|g| [g.q, Some(g.k), Some(g.v)]).flatten());
            }
        }
        all.push(done.lse);
        all
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
        vec![y, conv2d::doubled(&x, &conv2d::folded(&weight), &bias)]
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
        vec![group_norm::forward(&x, norm, true)]
    })
}

/// A layer with factors of `rank`, forward and backward: `m` rows of `k` to `n`.
fn layer([m, k, n, rank]: [usize; 4], dtype: DType) -> Exercise {
    let (x, dy, w) = (some(&[m, k], 1, dtype), some(&[m, n], 2, dtype), some(&[n, k], 3, dtype));
    let (bias, a, b) = (random(&[n], 4), random(&[rank, k], 5), random(&[n, rank], 6));
    Exercise::new(format!("linear of {m} rows of {k} to {n}, rank {rank}, {dtype:?}"), move |device| {
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
            out.push(of);
        }
        let mut of = copy::owned(&x);
        activation::gelu_tanh_backward(&mut of, &y);
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
        out.push(affine::forward(&x, affine::Affine { scale: 0.5, ..Default::default() }));
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
        out.extend([params, noise::normal(device, &[Key::new(1, Purpose::InitialLatent)], &[1, 4096])]);
        out
    })
}

/// Whole tiles and vectors, as in large models, of all kernels.
fn even() -> Vec<Exercise> {
    let mut all = vec![others(), convolve([1, 16, 16, 64], 64, F32, F32), convolve([1, 16, 16, 64], 16, F32, F32)];
    all.extend([32, 64, 128, 512].map(|d| attend(&[128], (1, d), F32, false)));
    all.push(layer([128, 128, 128, 32], F32));
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
        for (inputs, outputs) in [(64, 128), (64, 32), (4, 32)] {
            all.extend([dtype, F32].map(|of_x| convolve([1, 16, 16, inputs], outputs, of_x, dtype)));
        }
        all.push(convolve_in_every_form([1, 16, 16, 64], 256, 3, dtype));
        all.push(attend(&[256], (1, 512), dtype, false));
        all.extend([64, 256].map(|n| layer([256, n, n, 32], dtype)));
    }
    all
}

/// Parts of tiles and of vectors; rings that are not filled and rings that wrap; of all kernels that wait for something.
fn ragged() -> Vec<Exercise> {
    let mut all = vec![convolve([1, 9, 9, 20], 17, F32, F32), convolve([1, 9, 9, 20], 7, F32, F32)];
    all.extend([20, 60, 96, 136].map(|d| attend(&[70, 5], (1, d), F32, false)));
    all.extend([20, 60, 96].map(|d| attend(&[70], (1, d), F32, true)));
    all.push(attend(&[5, 3], (1, 500), F32, false));
    for dtype in TYPES {
        all.extend([[2, 3, 304], [2, 3, 301], [1, 2, 2440], [1, 2, 6160]].map(|size| norms(size, dtype)));
        all.extend([sums(2, 1025, dtype), sums(1, 4097, dtype)]);
        all.extend([24, 6].map(|channels| normalise_groups([2, 9, 33, channels], 3, dtype)));
        all.extend([[70, 200, 67, 5], [3, 8, 8, 1]].map(|size| layer(size, dtype)));
    }
    for dtype in HALVES {
        for d in [24, 56, 80, 120] {
            all.push(attend(&[150, 3], (1, d), dtype, false));
            all.push(attend(&[9], (1, d), dtype, false));
            all.push(attend(&[150], (1, d), dtype, true));
        }
        for (inputs, outputs) in [(72, 40), (72, 17), (13, 17), (8, 40), (8, 3)] {
            all.extend([dtype, F32].map(|of_x| convolve([1, 9, 9, inputs], outputs, of_x, dtype)));
        }
        all.extend([attend(&[300], (1, 256), dtype, false), attend(&[5], (2, 256), dtype, false)]);
        all.extend([3, 1].map(|kernel| convolve_in_every_form([2, 9, 33, 8], 40, kernel, dtype)));
        all.extend([[20, 200, 264, 32], [20, 264, 8, 1], [130, 40, 257, 5]].map(|size| layer(size, dtype)));
    }
    all
}
