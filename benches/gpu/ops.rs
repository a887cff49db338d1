//! Every op that takes time in Stable Diffusion 3.5 Medium at 512x512, at its shapes there. Work is counted as products of the
//! result's definition (the backward of attention as five), bytes as each operand once.

use std::path::Path;

use anyhow::Result;
use engine::device::gpu::Products;
use engine::device::philox::{Key, Purpose};
use engine::device::{DType, Tensor};
use engine::ops::activation::{self, Activation};
use engine::ops::adaln::{self, Chunk};
use engine::ops::adamw::{self, AdamW, Moments};
use engine::ops::attention::{self, Heads, Mask, OutputGrad, Part};
use engine::ops::conv2d::{self, Window};
use engine::ops::group_norm::{self, Norm};
use engine::ops::linear::{self, Adapted, InputGrad, Layer, Lora, LoraGrad, Then};
use engine::ops::products::{self, Difference, Weights};
use engine::ops::step::{self, Inputs, Row};
use engine::ops::{copy, noise, rms_norm};

use super::measure::{Session, Work};

/// The timing of an op; `Path` is a folder for large files.
pub type Bench = fn(&mut Session, Option<&Path>) -> Result<()>;

pub const ALL: [(&str, Bench); 12] = [
    ("linear", linear),
    ("linear_backward", linear_backward),
    ("attention", attention),
    ("adaln", adaln),
    ("rms_norm", rms_norm),
    ("gelu", gelu),
    ("group_norm", group_norm),
    ("conv2d", conv2d),
    ("noise", noise),
    ("step", step),
    ("products", products),
    ("adamw", adamw),
];

/// Inputs that take turns: with both, nothing of the last call is left in the L2 cache that a real one would not find.
pub const SETS: usize = 2;
const RANK: usize = 32;

/// Sizes of the network, or tiny ones with the same remainders.
pub struct Sizes {
    pub batch: usize,
    pub image: usize,
    pub text: usize,
    pub width: usize,
    pub heads: usize,
}

pub fn sizes(s: &Session) -> Sizes {
    if s.small {
        Sizes { batch: 2, image: 32, text: 9, width: 128, heads: 2 }
    } else {
        Sizes { batch: 16, image: 1024, text: 205, width: 1536, heads: 24 }
    }
}

/// `[SETS]` tensors of a shape.
pub fn each(s: &mut Session, shape: &[usize]) -> [Tensor; SETS] {
    std::array::from_fn(|_| s.normal(shape, 1.0))
}

/// The work of a product of bf16 matrices.
pub fn product(m: usize, n: usize, k: usize) -> Work {
    Work { flop: 2.0 * (m * n * k) as f64, bytes: 2.0 * (m * n + m * k + n * k) as f64 }
}

/// Reads or writes of `count` tensors of `elements` of two bytes.
pub fn moved(count: usize, elements: usize) -> Work {
    Work { flop: 0.0, bytes: 2.0 * (count * elements) as f64 }
}

/// Two adapters, of half of the samples each: the trained policy and its lagged copy.
fn adapters(s: &mut Session, batch: usize, inputs: usize, outputs: usize) -> [Lora; 2] {
    [0..batch / 2, batch / 2..batch].map(|samples| Lora {
        samples,
        a: s.single(&[RANK, inputs], 1.0 / (inputs as f32).sqrt()),
        b: s.single(&[outputs, RANK], 0.02),
        scale: 2.0,
    })
}

fn linear(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { batch, image, text, width: d, .. } = sizes(s);
    for (stream, b, n) in [("image", batch, image), ("text", batch, text), ("image, batch 2", 2, image)] {
        let m = b * n;
        let x = each(s, &[b, n, d]);
        let modulation = s.normal(&[b, 6 * d], 1.0);
        let gate = Chunk { modulation: &modulation, index: 2 };
        let lora = adapters(s, b, d, d);
        let low = |work: Work, layers: usize| Work { flop: work.flop + 4.0 * (layers * m * d * RANK) as f64, ..work };

        let [q, k, v] = [0; 3].map(|_| s.weight(d, d));
        let bias = s.normal(&[d], 0.1);
        let layers = [&q, &k, &v].map(|weight| Adapted { layer: Layer { weight, bias: Some(&bias) }, lora: &[] });
        let work = product(m, 3 * d, d);
        let case = format!("{stream} qkv {m}x{}x{d}", 3 * d);
        s.both(&case, work, SETS, |i| drop(linear::forward_each(&x[i], layers)))?;
        let adapted = layers.map(|l| Adapted { lora: &lora, ..l });
        s.both(&format!("{case}, LoRA"), low(work, 3), SETS, |i| drop(linear::forward_each(&x[i], adapted)))?;
        cublaslt(s, &case, [m, 3 * d, d])?;

        let work = product(m, d, d);
        let then = |residual| Then::AddGated { residual, gate };
        let case = format!("{stream} out {m}x{d}x{d}");
        s.both(&case, work, SETS, |i| drop(linear::forward(&x[i], layers[0], then(&x[1 - i]))))?;
        s.both(&format!("{case}, LoRA"), low(work, 1), SETS, |i| {
            drop(linear::forward(&x[i], adapted[0], then(&x[1 - i])));
        })?;
        cublaslt(s, &case, [m, d, d])?;

        let (up, wide_bias) = (s.weight(4 * d, d), s.normal(&[4 * d], 0.1));
        let up = Layer { weight: &up, bias: Some(&wide_bias) };
        let case = format!("{stream} fc1 {m}x{}x{d}", 4 * d);
        let activate = Then::Activate(Activation::GeluTanh);
        s.both(&case, product(m, 4 * d, d), SETS, |i| drop(linear::forward(&x[i], up, activate)))?;
        s.both(&format!("{case}, kept"), product(m, 4 * d, d), SETS, |i| {
            drop(linear::forward_activated(&x[i], up.into(), Activation::GeluTanh, b));
        })?;
        cublaslt(s, &case, [m, 4 * d, d])?;

        let (down, wide) = (s.weight(d, 4 * d), each(s, &[b, n, 4 * d]));
        let down = Layer { weight: &down, bias: Some(&bias) };
        let case = format!("{stream} fc2 {m}x{d}x{}", 4 * d);
        s.both(&case, product(m, d, 4 * d), SETS, |i| drop(linear::forward(&wide[i], down, then(&x[i]))))?;
        cublaslt(s, &case, [m, d, 4 * d])?;
    }
    Ok(())
}

fn linear_backward(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { batch: b, image, text, width: d, .. } = sizes(s);
    for (stream, n) in [("image", image), ("text", text)] {
        let m = b * n;
        let (x, dy, w) = (each(s, &[b, n, d]), each(s, &[b, n, d]), s.weight(d, d));
        let (wide, up, down) = (each(s, &[b, n, 4 * d]), s.weight(4 * d, d), s.weight(d, 4 * d));
        let [mut dx, mut dwide] = [d, 4 * d].map(|width| s.normal(&[b, n, width], 1.0));
        let case = format!("{stream} out, dx {m}x{d}x{d}");
        s.both(&case, product(m, d, d), SETS, |i| {
            linear::backward(&dy[i], &w, None, None, None, InputGrad::Overwrite(&mut dx));
        })?;
        cublaslt(s, &case, [m, d, d])?;
        let case = format!("{stream} fc1, dx {m}x{d}x{}", 4 * d);
        s.both(&case, product(m, d, 4 * d), SETS, |i| {
            linear::backward(&wide[i], &up, None, None, None, InputGrad::Overwrite(&mut dx));
        })?;
        cublaslt(s, &case, [m, d, 4 * d])?;
        let case = format!("{stream} fc2, dx {m}x{}x{d}", 4 * d);
        s.both(&case, product(m, 4 * d, d), SETS, |i| {
            linear::backward(&dy[i], &down, None, None, None, InputGrad::Overwrite(&mut dwide));
        })?;
        cublaslt(s, &case, [m, 4 * d, d])?;

        let [one, _] = adapters(s, 2 * b, d, d);
        let mut flat = s.single(&[2 * RANK * d], 1e-3);
        let mut grads = |i: usize, dx: InputGrad| {
            let grad = Some(LoraGrad { flat: &mut flat, a: 0, b: RANK * d });
            linear::backward(&dy[i], &w, Some(&x[i]), Some(&one), grad, dx);
        };
        let low = 2.0 * (m * d * RANK) as f64;
        let both = product(m, d, d);
        // t = x·Aᵀ, u = dy·B, dA and dB; and u·A.
        let work = Work { flop: both.flop + 5.0 * low, bytes: both.bytes + 2.0 * (m * d) as f64 };
        s.both(&format!("{stream} out, dx dA dB {m}x{d}x{d}"), work, SETS, |i| {
            grads(i, InputGrad::Overwrite(&mut dx));
        })?;
        let work = Work { flop: 4.0 * low, bytes: 4.0 * (m * d) as f64 };
        s.both(&format!("{stream} out, dA dB {m}x{d}x{d}"), work, SETS, |i| grads(i, InputGrad::Skip))?;
    }
    Ok(())
}

/// The product alone by the kernel that cuBLASLt prefers, if it is here.
fn cublaslt(s: &mut Session, case: &str, [m, n, k]: [usize; 3]) -> Result<()> {
    let (x, w) = (each(s, &[m, k]), s.weight(n, k));
    let layer = Layer { weight: &w, bias: None };
    s.by(Products::CublasltUnpinned, case, "cublaslt", product(m, n, k), SETS, |i| {
        drop(linear::forward(&x[i], layer, Then::Nothing))
    })
}

fn attention(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { image, text, width: d, heads: count, .. } = sizes(s);
    let lengths: [&[usize]; 3] =
        if s.small { [&[32], &[32, 9], &[65, 20]] } else { [&[image], &[image, text], &[4096, 333]] };
    let batches: &[usize] = if s.small { &[1] } else { &[16, 2] };
    for (lengths, &b) in lengths.iter().flat_map(|l| batches.iter().map(move |b| (l, b))) {
        let n: usize = lengths.iter().sum();
        let heads = Heads { count, scale: 1.0 / ((d / count) as f32).sqrt(), compute: DType::Bf16 };
        let mut operands = || lengths.iter().map(|n| [0; 4].map(|_| s.normal(&[b, *n, d], 1.0))).collect();
        let sets: [Vec<[Tensor; 4]>; SETS] = std::array::from_fn(|_| operands());
        let parts = |set: usize| sets[set].iter().map(|[q, k, v, _]| Part { q, k, v }).collect::<Vec<_>>();
        let flop = 4.0 * (b * n * n * d) as f64;
        let name = format!("{} batch {b}", lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("+"));
        let work = Work { flop, ..moved(4, b * n * d) };
        s.repeat(&format!("forward {name}"), work, SETS, |i| {
            drop(attention::forward(&parts(i), heads, Mask::default()));
        })?;
        let done: Vec<_> = (0..SETS).map(|i| attention::forward(&parts(i), heads, Mask::default())).collect();
        let work = Work { flop: 2.5 * flop, ..moved(8, b * n * d) };
        s.repeat(&format!("backward {name}"), work, SETS, |i| {
            let outputs = done[i].out.iter().zip(&sets[i]);
            let outputs: Vec<_> = outputs.map(|(out, [.., dout])| Some(OutputGrad { out, dout })).collect();
            drop(attention::backward(&outputs, &done[i].lse, &parts(i), heads));
        })?;
    }
    Ok(())
}

fn adaln(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { batch: b, image, text, width: d, .. } = sizes(s);
    let n = image + text;
    let (x, dy, modulation) = (each(s, &[b, n, d]), each(s, &[b, n, d]), s.normal(&[b, 2 * d], 1.0));
    let [shift, scale] = [0, 1].map(|index| Chunk { modulation: &modulation, index });
    let case = format!("{b}x{n}x{d}");
    s.repeat(&format!("forward {case}"), moved(2, b * n * d), SETS, |i| drop(adaln::forward(&x[i], shift, scale)))?;
    let mut dx = s.normal(&[b, n, d], 1.0);
    s.repeat(&format!("backward {case}"), moved(4, b * n * d), SETS, |i| {
        adaln::backward(&mut dx, &dy[i], &x[i], scale);
    })
}

fn rms_norm(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { batch: b, image, text, width: d, heads } = sizes(s);
    let shape = [b, image + text, d];
    let (x, weight, elements) = (each(s, &shape), s.normal(&[d / heads], 1.0), shape.iter().product::<usize>());
    let case = format!("{b}x{}x{heads}x{}", shape[1], d / heads);
    s.repeat(&format!("forward {case}"), moved(2, elements), SETS, |i| drop(rms_norm::forward(&x[i], &weight, 1e-6)))?;
    let (mut y, mut inverse) = (x[0].scratch_like(&shape), rms_norm::room_for_inverse(&x[0], &weight));
    rms_norm::forward_into(&mut y, &x[0], &weight, 1e-6, &mut inverse);
    s.fresh(
        &format!("backward {case}"),
        moved(3, elements),
        2 * elements,
        |s| s.normal(&shape, 1.0),
        |dy| rms_norm::backward(dy, &x[0], &weight, &inverse),
    )
}

fn gelu(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let Sizes { batch: b, image, width: d, .. } = sizes(s);
    let shape = [b, image, 4 * d];
    let (x, elements) = (s.normal(&shape, 1.0), shape.iter().product::<usize>());
    let case = format!("{b}x{image}x{}", 4 * d);
    let make = |s: &mut Session| s.normal(&shape, 1.0);
    s.fresh(&format!("forward {case}"), moved(2, elements), 2 * elements, make, |x| {
        activation::forward(x, Activation::GeluTanh);
    })?;
    s.fresh(&format!("backward {case}"), moved(3, elements), 2 * elements, make, |dy| {
        activation::gelu_tanh_backward(dy, &x);
    })
}

/// Pictures that the decoder of a VAE meets: side, channels.
fn pictures(s: &Session) -> &'static [(usize, usize)] {
    if s.small { &[(9, 64)] } else { &[(64, 512), (128, 512), (256, 256), (512, 128)] }
}

fn group_norm(s: &mut Session, _: Option<&Path>) -> Result<()> {
    for &(side, c) in pictures(s) {
        let x = each(s, &[1, side, side, c]);
        let [weight, bias] = [0; 2].map(|_| s.normal(&[c], 1.0));
        let norm = Norm { weight: &weight, bias: &bias, groups: 32, eps: 1e-6 };
        let work = moved(2, side * side * c);
        s.repeat(&format!("silu {side}x{side}x{c}"), work, SETS, |i| drop(group_norm::forward(&x[i], norm, true)))?;
    }
    Ok(())
}

fn conv2d(s: &mut Session, _: Option<&Path>) -> Result<()> {
    for &(side, c) in pictures(s) {
        let (x, w, bias) =
            (each(s, &[1, side, side, c]), s.normal(&[c, c, 3, 3], 1.0 / (9.0 * c as f32).sqrt()), s.normal(&[c], 0.1));
        let w3 = conv2d::arranged(&w);
        let flop = 2.0 * (side * side * 9 * c * c) as f64;
        let work = Work { flop, ..moved(2, side * side * c) };
        s.repeat(&format!("3x3 {side}x{side}x{c}"), work, SETS, |i| {
            drop(conv2d::forward(&x[i], &w3, &bias, Window::same(3), None));
        })?;
        let work = Work { flop, ..moved(3, side * side * c) };
        s.repeat(&format!("3x3 {side}x{side}x{c}, added to"), work, SETS, |i| {
            drop(conv2d::forward(&x[i], &w3, &bias, Window::same(3), Some(&x[i])));
        })?;
        if side < 512 {
            // As four windows of 2x2.
            let folded = copy::cast(&conv2d::folded(&w), x[0].dtype());
            let work = Work { flop: flop * 16.0 / 9.0, ..moved(5, side * side * c) };
            s.repeat(&format!("doubled {side}x{side}x{c}"), work, SETS, |i| {
                drop(conv2d::doubled(&x[i], &folded, &bias))
            })?;
        }
    }
    Ok(())
}

/// A batch of latents.
fn latents(s: &Session) -> [usize; 4] {
    if s.small { [2, 16, 8, 8] } else { [16, 16, 64, 64] }
}

fn keys(rows: usize) -> Vec<Key> {
    (0..rows as u32).map(|prompt| Key { prompt, ..Key::new(1, Purpose::SamplerNoise) }).collect()
}

fn noise(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let shape = latents(s);
    let (keys, device, elements) = (keys(shape[0]), s.device.clone(), shape.iter().product());
    s.repeat(&format!("{shape:?}"), moved(2, elements), 1, |_| drop(noise::normal(&device, &keys, &shape)))
}

fn step(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let shape = latents(s);
    let [b, c, h, w] = shape;
    let (keys, elements) = (keys(b), shape.iter().product::<usize>());
    let x: [Tensor; SETS] = std::array::from_fn(|_| s.single(&shape, 1.0));
    let guided = s.single(&[2 * b, c, h, w], 1.0);
    let plain = s.single(&shape, 1.0);
    let row = Row { a: 0.99, b: -0.1, s: 0.2, ..Row::default() };
    for (name, velocity, guidance, reads) in [("", &plain, None, 2), (", guided", &guided, Some(4.5), 3)] {
        let inputs = |i: usize| Inputs { x: &x[i], velocity, guidance, history: [None; 2], noise: &keys };
        let work = moved(2 * (reads + 1), elements);
        s.repeat(&format!("{shape:?}{name}"), work, SETS, |i| drop(step::forward(inputs(i), row)))?;
        let next = step::forward(inputs(0), row);
        s.direct(&format!("{shape:?}{name}, log-probability, read back"), "engine", work, |_| {
            drop(step::residuals(&next, inputs(0), row));
        })?;
    }
    Ok(())
}

fn products(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let shape = latents(s);
    let v: [Tensor; 4] = std::array::from_fn(|_| s.single(&shape, 1.0));
    let weights: Vec<f32> = (0..shape[0]).map(|i| i as f32 / 16.0).collect();
    let difference =
        |i: usize, j: usize| Difference { terms: vec![(Weights::All(1.0), &v[i]), (Weights::Rows(&weights), &v[j])] };
    let differences = [difference(0, 1), difference(2, 3), difference(0, 3)];
    s.direct(&format!("{shape:?}, three differences, read back"), "engine", moved(8, shape.iter().product()), |_| {
        drop(products::forward(&differences));
    })
}

fn adamw(s: &mut Session, _: Option<&Path>) -> Result<()> {
    let n = if s.small { 4099 } else { 18_780_000 };
    let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, weight_decay: 0.01, eps: 1e-8 };
    let (mut params, grads) = (s.single(&[n], 0.1), [0; SETS].map(|_| s.single(&[n], 1e-3)));
    let mut moments = Moments::zeros_like(&params);
    // Its scalars differ from step to step, so that it is never the same graph.
    s.direct(&format!("{n} parameters"), "engine", moved(14, n), |i| {
        adamw::step(&settings, &mut params, &grads[i % SETS], 1.0, &mut moments);
    })
}
