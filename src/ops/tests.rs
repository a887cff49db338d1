//! What must hold for every op.

use super::activation::{self, Activation};
use super::adaln::{self, Chunk};
use super::attention::{self, Heads, Mask, OutputGrad, Part};
use super::conv2d::{self, Window};
use super::group_norm::{self, Norm};
use super::linear::{self, Adapted, InputGrad, Layer, Lora, Then};
use super::patchify::{self, Order, Patches};
use super::step::{self, Inputs, Row};
use super::testing::{check_batch_invariance as check, random};
use super::{embedding, gate, layer_norm, noise, noising, quantise, resize, rms_norm, timestep};
use crate::device::philox::{Key, Purpose};
use crate::device::{DType, Device, Tensor};

fn in_place(mut x: Tensor, f: &dyn Fn(&mut Tensor)) -> Tensor {
    f(&mut x);
    x
}

/// A copy of some samples, to be written to.
fn copy(x: &Tensor, samples: std::ops::Range<usize>) -> Tensor {
    super::copy::owned(&x.slice(samples))
}

// Sizes in this file are odd, and large enough that the work is divided.

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits_for_norms_and_gates_and_activations() {
    let (n, d) = (131, 70);
    let [x, dy] = [1, 2].map(|seed| random(&[9, n, d], seed));
    let (modulation, w, head) = (random(&[9, 3 * d], 3), random(&[d], 4), random(&[d / 2], 5));
    check("adaln", |r| {
        let m = modulation.slice(r.clone());
        let chunk = |index| Chunk { modulation: &m, index };
        adaln::forward(&x.slice(r), chunk(0), chunk(1))
    });
    check("adaln backward", |r| {
        let (m, dy) = (modulation.slice(r.clone()), dy.slice(r.clone()));
        let scale = Chunk { modulation: &m, index: 1 };
        in_place(copy(&dy, 0..r.len()), &|dx| adaln::backward(dx, &dy, &x.slice(r.clone()), scale))
    });
    check("gate backward", |r| {
        gate::backward(&dy.slice(r.clone()), Chunk { modulation: &modulation.slice(r), index: 2 })
    });
    check("layer_norm", |r| layer_norm::forward(&x.slice(r), &w, &w, 1e-5));
    check("rms_norm", |r| rms_norm::forward(&x.slice(r), &head, 1e-6));
    check("rms_norm backward", |r| {
        let x = x.slice(r.clone());
        let (mut y, mut inverse) = (x.scratch_like(x.shape()), rms_norm::room_for_inverse(&x, &head));
        rms_norm::forward_into(&mut y, &x, &head, 1e-6, &mut inverse);
        in_place(copy(&dy, r), &|d| rms_norm::backward(d, &x, &head, &inverse))
    });
    for a in [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
        check(&format!("{a:?}"), |r| in_place(copy(&x, r), &|x| activation::forward(x, a)));
    }
    check("gelu_tanh backward", |r| {
        in_place(copy(&dy, r.clone()), &|d| activation::gelu_tanh_backward(d, &x.slice(r.clone())))
    });
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits_for_what_begins_and_ends_a_forward() {
    let (x, v) = (random(&[9, 3, 10, 14], 1), random(&[9, 3, 10, 14], 2));
    let patches = Patches { channels: 3, size: 2, grid: (5, 7) };
    check("patchify", |r| patchify::forward(&x.slice(r), &patches, Order::ChannelLast));
    let table = random(&[70, 33], 3);
    check("embedding", |r| embedding::forward(&r.map(|i| i as u32 * 7).collect::<Vec<_>>(), &table));
    let times: Vec<f32> = (0..9).map(|i| i as f32 * 111.1).collect();
    check("timestep", |r| timestep::forward(&Device::Cpu, &times[r], 66));
    let keys: Vec<Key> = (0..9).map(|prompt| Key { prompt, ..Key::new(5, Purpose::SamplerNoise) }).collect();
    check("noise", |r| noise::normal(&Device::Cpu, &keys[r.clone()], &[r.len(), 5001]));
    check("noising", |r| {
        let t: Vec<f32> = r.clone().map(|i| i as f32 / 9.0).collect();
        noising::forward(&x.slice(r.clone()), &v.slice(r), &t)
    });
    check("step", |r| {
        let inputs = Inputs {
            x: &x.slice(r.clone()),
            velocity: &v.slice(r.clone()),
            guidance: None,
            history: [None; 2],
            noise: &keys[r],
        };
        step::forward(inputs, Row { a: 0.9, b: -0.1, s: 0.3, ..Row::default() })
    });
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits_for_layers_with_and_without_adapters() {
    let (n, d, out) = (131, 70, 90);
    let [x, residual] = [(d, 1), (out, 2)].map(|(d, seed)| random(&[9, n, d], seed));
    let (weight, bias, modulation) = (random(&[out, d], 3), random(&[out], 4), random(&[9, 2 * out], 5));
    let (a, b) = (random(&[4, d], 6), random(&[out, 4], 7));
    let layer = Layer { weight: &weight, bias: Some(&bias) };
    let lora = |samples| [Lora { samples, a: a.clone(), b: b.clone(), scale: 2.0 }];
    for (name, adapted) in [("base", false), ("lora", true)] {
        let run = |r: std::ops::Range<usize>, then: Then| {
            let lora = lora(0..if adapted { r.len() } else { 0 });
            linear::forward(&x.slice(r), Adapted { layer, lora: &lora }, then)
        };
        check(name, |r| run(r, Then::Nothing));
        check(&format!("{name} and gelu"), |r| run(r, Then::Activate(Activation::GeluTanh)));
        check(&format!("{name} and residual"), |r| run(r.clone(), Then::Add(&residual.slice(r))));
        check(&format!("{name} and gated residual"), |r| {
            let gate = Chunk { modulation: &modulation.slice(r.clone()), index: 1 };
            run(r.clone(), Then::AddGated { residual: &residual.slice(r), gate })
        });
    }
    check("linear backward", |r| {
        let (dy, lora) = (residual.slice(r.clone()), lora(0..r.len()));
        in_place(random(&[r.len(), n, d], 8), &|dx| {
            linear::backward(&dy, &weight, None, Some(&lora[0]), None, InputGrad::Overwrite(dx));
        })
    });
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits_for_attention_and_its_gradients() {
    let width = 16;
    for compute in [DType::F32, DType::Bf16] {
        let heads = Heads { count: 2, scale: 0.3, compute };
        let operand = |n: usize, seed| random(&[9, n, width], seed);
        let all: Vec<[Tensor; 4]> =
            [(150, 1), (31, 5)].iter().map(|(n, seed)| [0, 1, 2, 3].map(|i| operand(*n, seed + i))).collect();
        let parts = |r: std::ops::Range<usize>| -> Vec<[Tensor; 4]> {
            all.iter().map(|part| part.each_ref().map(|t| t.slice(r.clone()))).collect()
        };
        fn views(part: &[Tensor; 4]) -> Part<'_> {
            Part { q: &part[0], k: &part[1], v: &part[2] }
        }
        for i in 0..2 {
            check("attention", |r| {
                let parts = parts(r);
                let views: Vec<Part> = parts.iter().map(views).collect();
                attention::forward(&views, heads, Mask::default()).out.swap_remove(i)
            });
        }
        for which in 0..3 {
            check("attention backward", |r| {
                let parts = parts(r);
                let views: Vec<Part> = parts.iter().map(views).collect();
                let done = attention::forward(&views, heads, Mask::default());
                let outputs: Vec<Option<OutputGrad>> =
                    done.out.iter().zip(&parts).map(|(out, p)| Some(OutputGrad { out, dout: &p[3] })).collect();
                let grads = attention::backward(&outputs, &done.lse, &views, heads);
                let grad = grads.into_iter().next().unwrap();
                match which {
                    0 => grad.q.unwrap(),
                    1 => grad.k,
                    _ => grad.v,
                }
            });
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits_for_images() {
    let x = random(&[9, 24, 20, 70], 1);
    let (kernel, bias) = (random(&[52, 70, 3, 3], 2), random(&[52], 3));
    let (arranged, folded) = (conv2d::arranged(&kernel), conv2d::folded(&kernel));
    check("conv2d", |r| conv2d::forward(&x.slice(r), &arranged, &bias, Window::same(3), None));
    check("conv2d halving", |r| conv2d::forward(&x.slice(r), &arranged, &bias, Window::halving(), None));
    check("conv2d doubled", |r| conv2d::doubled(&x.slice(r), &folded, &bias));
    let (weight, shift) = (random(&[70], 4), random(&[70], 5));
    let norm = Norm { weight: &weight, bias: &shift, groups: 7, eps: 1e-6 };
    check("group_norm", |r| group_norm::forward(&x.slice(r), norm, true));
    let bytes = quantise::forward(&random(&[9, 41, 37, 3], 6));
    check("resize", |r| resize::bicubic(&bytes.slice(r), 19, 53));
}

#[test]
fn a_plan_gives_the_shapes_and_computes_nothing() {
    let (plan, ledger) = Device::plan();
    let x = Tensor::scratch(&plan, &[2, 512, 64]);
    let w = Tensor::planned(&ledger, crate::device::DType::F32, &[128, 64]);
    let y = linear::forward(&x, Layer { weight: &w, bias: None }, Then::Nothing);
    assert_eq!((y.shape(), y.device().is_plan()), (&[2, 512, 128][..], true));
    assert_eq!(ledger.live(), 4 * 2 * 512 * (64 + 128));
}
