//! Whether a GPU computes what the interpreter says it does. Where every operation is rounded on its own, to the bit; where
//! matrix units add up, whose rounding is their maker's secret, within what both may be off.

use std::time::Instant;

use anyhow::{Result, ensure};
use engine::device::philox::{Key, Purpose};
use engine::device::{DType, Device, Tensor};
use engine::ops::activation::Activation;
use engine::ops::adaln::{self, Chunk};
use engine::ops::attention::{self, Heads, Mask, OutputGrad, Part};
use engine::ops::conv2d::{self, Window};
use engine::ops::group_norm::{self, Norm};
use engine::ops::linear::{self, InputGrad, Layer, Lora, LoraGrad, Then};
use engine::ops::step::{self, Inputs, Row};
use engine::ops::{activation, copy, noise, rms_norm};
use sha2::{Digest, Sha256};

use super::measure::Log;

/// SHA-256 of the first 2^18 normals of `Key::new(7, InitialLatent)`, as the definition in numpy makes them.
const NORMALS: &str = "5cbf76830fad055f";

type Case = (&'static str, bool, fn(&Device, u64) -> Vec<Tensor>);

/// Name, whether bits must be equal, and results of inputs of a seed.
const CASES: [Case; 10] = [
    ("gelu, silu", true, |device, seed| {
        [Activation::GeluTanh, Activation::GeluErf, Activation::Silu, Activation::QuickGelu]
            .map(|which| {
                let mut x = input(device, seed, &[1, 4099], DType::F32);
                activation::forward(&mut x, which);
                x
            })
            .into()
    }),
    ("rounding to bf16 and f16", true, |device, seed| {
        let x = input(device, seed, &[1, 4099], DType::F32);
        [DType::Bf16, DType::F16].map(|dtype| copy::cast(&x, dtype)).into()
    }),
    ("adaln", true, |device, seed| {
        let (x, m) = (input(device, seed, &[2, 5, 192], DType::Bf16), input(device, seed + 1, &[2, 384], DType::Bf16));
        let [shift, scale] = [0, 1].map(|index| Chunk { modulation: &m, index });
        vec![adaln::forward(&x, shift, scale)]
    }),
    ("rms norm", true, |device, seed| {
        let (x, w) = (input(device, seed, &[2, 5, 192], DType::Bf16), input(device, seed + 1, &[64], DType::F32));
        vec![rms_norm::forward(&x, &w, 1e-6)]
    }),
    ("group norm", false, |device, seed| {
        let x = input(device, seed, &[1, 9, 7, 64], DType::Bf16);
        let [weight, bias] = [1, 2].map(|i| input(device, seed + i, &[64], DType::F32));
        vec![group_norm::forward(&x, Norm { weight: &weight, bias: &bias, groups: 32, eps: 1e-6 }, true)]
    }),
    ("sampler step", true, |device, seed| {
        let (x, velocity) =
            (input(device, seed, &[2, 999], DType::F32), input(device, seed + 1, &[4, 999], DType::F32));
        let keys = [0, 1].map(|prompt| Key { prompt, ..Key::new(seed, Purpose::SamplerNoise) });
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: Some(3.5), history: [None; 2], noise: &keys };
        vec![step::forward(inputs, Row { a: 0.9, b: -0.1, s: 0.2, ..Row::default() })]
    }),
    ("linear with LoRA, forward and backward", false, |device, seed| {
        let of = |i: u64, shape: &[usize]| input(device, seed + i, shape, DType::Bf16);
        let (x, w, dy) = (of(0, &[2, 67, 200]), of(1, &[136, 200]), of(2, &[2, 67, 136]));
        let bias = input(device, seed + 3, &[136], DType::F32);
        let [a, b] = [(4, [32, 200]), (5, [136, 32])].map(|(i, shape)| input(device, seed + i, &shape, DType::F32));
        let lora = Lora { samples: 0..2, a, b, scale: 0.5 };
        let layer = Layer { weight: &w, bias: Some(&bias) };
        let adapted = linear::Adapted { layer, lora: std::slice::from_ref(&lora) };
        let y = linear::forward(&x, adapted, Then::Activate(Activation::GeluTanh));
        let (mut flat, mut dx) = (Tensor::zeros(device, &[32 * 336]), x.zeros_like(x.shape()));
        let grad = Some(LoraGrad { flat: &mut flat, a: 0, b: 32 * 200 });
        linear::backward(&dy, &w, Some(&x), Some(&lora), grad, InputGrad::Overwrite(&mut dx));
        vec![y, dx, flat]
    }),
    ("attention of two parts, forward and backward", false, |device, seed| {
        let of = |i: u64, n: usize| input(device, seed + i, &[1, n, 128], DType::Bf16);
        let images: [Tensor; 4] = std::array::from_fn(|i| of(i as u64, 139));
        let texts: [Tensor; 4] = std::array::from_fn(|i| of(9 + i as u64, 45));
        let parts = [&images, &texts].map(|[q, k, v, _]| Part { q, k, v });
        let heads = Heads { count: 2, scale: 0.125, compute: DType::Bf16 };
        let done = attention::forward(&parts, heads, Mask::default());
        let grad = |i: usize, dout| Some(OutputGrad { out: &done.out[i], dout });
        let back = attention::backward(&[grad(0, &images[3]), grad(1, &texts[3])], &done.lse, &parts, heads);
        let back = back.into_iter().flat_map(|g| [g.q.expect("asked for"), g.k, g.v]);
        let back: Vec<Tensor> = back.collect();
        done.out.into_iter().chain([done.lse]).chain(back).collect()
    }),
    ("convolution", false, |device, seed| convolution(device, seed, 24)),
    ("convolution to more channels", false, |device, seed| convolution(device, seed, 136)),
];

/// Of a picture, of it with a stride, and of it doubled.
fn convolution(device: &Device, seed: u64, outputs: usize) -> Vec<Tensor> {
    let (x, w) = (
        input(device, seed, &[1, 17, 19, 40], DType::Bf16),
        input(device, seed + 1, &[outputs, 40, 3, 3], DType::Bf16),
    );
    let bias = input(device, seed + 2, &[outputs], DType::F32);
    let of = |window| conv2d::forward(&x, &conv2d::arranged(&w), &bias, window, None);
    vec![of(Window::same(3)), of(Window::halving()), conv2d::doubled(&x, &conv2d::folded(&w), &bias)]
}

/// Normal numbers that do not depend on the device.
fn input(device: &Device, seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let key = Key::new(seed, Purpose::ForwardNoise);
    let x = noise::normal(&Device::Cpu, &[key], &[1, shape.iter().product()]).reshape(shape);
    copy::cast(&x.to(device), dtype)
}

/// Every case on the device and on the interpreter.
pub fn run(open: impl Fn() -> Result<Device>, seed: u64, small: bool, log: &mut Log) -> Result<()> {
    let start = Instant::now();
    let done = normals(&open()?, small);
    log.check("noise: the hash of its definition", done.is_ok(), start, &explain(&done))?;
    for (name, exact, f) in CASES {
        let start = Instant::now();
        let done = compare(&open()?, seed, exact, f);
        let how = if exact { "bits" } else { "numbers" };
        log.check(&format!("{name}: the interpreter's {how}"), done.is_ok(), start, &explain(&done))?;
    }
    Ok(())
}

fn explain(done: &Result<String>) -> String {
    done.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone)
}

/// All of them on a GPU; few where they are interpreted, compared with the processor's.
fn normals(device: &Device, small: bool) -> Result<String> {
    let key = Key::new(7, Purpose::InitialLatent);
    let bytes = |device: &Device, n| noise::normal(device, &[key], &[1, n]).to_raw();
    if small {
        ensure!(bytes(device, 1 << 12) == bytes(&Device::Cpu, 1 << 12), "other numbers than the processor's");
    }
    let all = bytes(if small { &Device::Cpu } else { device }, 1 << 18);
    device.check()?;
    let hash: String = Sha256::digest(&all).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(hash.starts_with(NORMALS), "SHA-256 {hash}, expected {NORMALS}...");
    Ok(String::new())
}

fn compare(device: &Device, seed: u64, exact: bool, f: fn(&Device, u64) -> Vec<Tensor>) -> Result<String> {
    let vm = Device::vm(ptxvm::Options::default())?;
    let (got, want) = (f(device, seed), f(&vm, seed));
    device.check()?;
    vm.check()?;
    let mut worst = 0f64;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        if exact {
            ensure!(got.to_raw() == want.to_raw(), "result {i} has other bits; --seed {seed}");
            continue;
        }
        let (got, want) = (got.to_host(), want.to_host());
        let largest = want.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
        let apart = got.iter().zip(&want).map(|(g, w)| if g.is_nan() { f32::INFINITY } else { (g - w).abs() });
        let error = f64::from(apart.fold(0.0, f32::max) / largest);
        // Two roundings to bf16 of a result, or of what goes into the second product of attention.
        ensure!(error <= 2f64.powi(-7), "result {i} is off by {error:e}; --seed {seed}");
        worst = worst.max(error);
    }
    Ok(if exact { String::new() } else { format!("largest difference {worst:.1e}") })
}
