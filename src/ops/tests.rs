//! What must hold for every op.

use std::ops::Range;

use super::heads::Part;
use super::linear::{InputGrad, LoraRef};
use super::testing::{random, random_weight};
use super::{activation, adaln, embedding, euler, gate, heads, layer_norm, linear, patchify, rms_norm, transpose};
use crate::device::{Tensor, with_threads};

/// Runs `f` on all nine rows with 1, 2 and 3 threads and on every row alone; all bits must agree.
fn check(name: &str, f: impl Fn(Range<usize>) -> Tensor + Sync) {
    let run = |threads: usize, rows: Range<usize>| {
        let y = with_threads(threads, || f(rows)).unwrap();
        y.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let whole = run(1, 0..9);
    assert_eq!(whole, run(2, 0..9), "{name}");
    assert_eq!(whole, run(3, 0..9), "{name}");
    for i in 0..9 {
        assert_eq!(whole[i * whole.len() / 9..(i + 1) * whole.len() / 9], run(2, i..i + 1), "{name}: row {i}");
    }
}

#[test]
fn a_row_alone_and_in_a_batch_of_nine_gives_the_same_bits_for_any_number_of_threads() {
    // Odd sizes, large enough that the work is divided.
    let (n, d, heads) = (131, 70, 2);
    let [x, dy] = [1, 2].map(|seed| random(&[9, n, d], seed));
    let modulation = random(&[9, 3 * d], 3);
    let (w, norm) = (random_weight(&[d], 4), random_weight(&[d / heads], 5));
    let in_place = |x: Tensor, f: &dyn Fn(&mut Tensor)| {
        let mut y = x;
        f(&mut y);
        y
    };
    check("adaln", |r| adaln::forward(&x.slice(r.clone()), &modulation.slice(r), 0, 1));
    check("adaln backward", |r| {
        let (dy, modulation) = (dy.slice(r.clone()), modulation.slice(r.clone()));
        in_place(dy.clone(), &|dx| adaln::backward(dx, &dy, &x.slice(r.clone()), &modulation, 1))
    });
    check("gate", |r| {
        let (y, modulation) = (dy.slice(r.clone()), modulation.slice(r.clone()));
        in_place(x.slice(r), &|x| gate::forward(x, &y, &modulation, 2))
    });
    check("gate backward", |r| gate::backward(&dy.slice(r.clone()), &modulation.slice(r), 2));
    check("layer_norm", |r| layer_norm::forward(&x.slice(r), Some(&w), Some(&w), 1e-5));
    check("rms_norm", |r| rms_norm::forward(&x.slice(r), &w, 1e-6));
    let part = Part { offset: 0, len: n };
    let split = |r: Range<usize>| {
        let out = Tensor::zeros(&[r.len(), heads, n, d / heads]);
        in_place(out, &|out| heads::split_into(out, &x.slice(r.clone()), part, Some(&norm)))
    };
    check("heads", split);
    check("heads backward", |r| heads::backward(&split(r.clone()), part, &x.slice(r), Some(&norm)));
    for (name, f) in [
        ("gelu_tanh", activation::gelu_tanh as fn(&mut Tensor)),
        ("gelu_erf", activation::gelu_erf),
        ("quick_gelu", activation::quick_gelu),
        ("silu", activation::silu),
    ] {
        check(name, |r| in_place(x.slice(r), &f));
    }
    check("gelu_tanh backward", |r| {
        let x = x.slice(r.clone());
        in_place(dy.slice(r), &|d| activation::gelu_tanh_backward(d, &x))
    });
    check("transpose", |r| transpose::forward(&x.slice(r)));
    check("euler", |r| in_place(x.slice(r.clone()), &|x| euler::step(x, &dy.slice(r.clone()), None, -0.1)));
    check("embedding", |r| {
        embedding::forward(&r.map(|i| i as u32 * 7).collect::<Vec<_>>(), &random_weight(&[70, d], 6))
    });
    let latent = random(&[9, 3, 10, 14], 7);
    let patches = patchify::Patches { channels: 3, size: 2, grid: (5, 7) };
    check("patchify", |r| patchify::forward(&latent.slice(r), &patches, patchify::Order::ChannelLast));
    let (a, b, base) = (random(&[4, d], 8), random(&[d, 4], 9), random_weight(&[d, d], 10));
    let lora = LoraRef { a: &a, b: &b, scale: 2.0 };
    check("linear", |r| linear::forward(&x.slice(r), &base, Some(&w), Some(lora)));
    check("linear backward", |r| {
        let dy = dy.slice(r);
        in_place(Tensor::scratch(dy.shape()), &|dx| {
            linear::backward(&dy, &base, None, Some(lora), None, InputGrad::Overwrite(dx));
        })
    });
}
