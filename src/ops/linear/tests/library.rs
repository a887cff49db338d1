//! Products by a library, which on an interpreted GPU is one chain of single precision for every element.

use super::*;
use crate::device::gpu::{Gpu, HOPPER, Products};

/// Activations and weights.
const HALVES: [[DType; 2]; 4] =
    [[DType::Bf16, DType::Bf16], [DType::F16, DType::F16], [DType::F32, DType::Bf16], [DType::F32, DType::F16]];

const SAMPLES: usize = 9;
const WIDTH: usize = 72;
const OUT: usize = 40;

fn gpu(device: &Device) -> &Gpu {
    let Device::Gpu(gpu) = device else { panic!("{device:?} is no GPU") };
    gpu
}

/// Has the library multiply, if there is one.
fn choose(device: &Device) {
    // A real GPU may be where the library is not.
    gpu(device).choose(Products::Cublaslt).unwrap_or_else(|why| eprintln!("not by a library: {why:#}"));
}

/// The relative error of a store.
fn store(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 2f32.powi(-11),
        DType::Bf16 => 2f32.powi(-8),
        _ => 2f32.powi(-24),
    }
}

/// The error of chains of so many steps, in single precision.
fn chains(depth: usize, a: &Tensor, b: &Tensor) -> f32 {
    (depth * depth) as f32 * 2f32.powi(-24) * largest(a) * largest(b)
}

fn largest(t: &Tensor) -> f32 {
    t.to_host().iter().fold(0.0, |most, v| most.max(v.abs()))
}

fn check(name: &str, got: &Tensor, own: &Tensor, allowed: f32) {
    let apart = got.to_host().iter().zip(own.to_host()).map(|(g, o)| (g - o).abs()).collect::<Vec<_>>();
    let worst = apart.into_iter().find(|v| v.is_nan() || *v > allowed);
    assert!(worst.is_none(), "{name}: off by {worst:?}, allowed {allowed:e}");
}

/// A layer with all that can follow it.
struct Given {
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    lora: Vec<Lora>,
    residual: Tensor,
    modulation: Tensor,
    weight: Tensor,
}

impl Given {
    fn new(device: &Device, [activations, weights]: [DType; 2]) -> Self {
        let put = |shape: &[usize], seed, dtype| rounded(&random(shape, seed), dtype).to(device);
        let f32 = DType::F32;
        let lora = |samples, seed: u64| {
            let (a, b) = (put(&[4, WIDTH], seed, f32), put(&[OUT, 4], seed + 1, f32));
            Lora { samples, a, b, scale: 0.3 }
        };
        Self {
            x: put(&[SAMPLES, 5, WIDTH], 1, activations),
            w: put(&[OUT, WIDTH], 2, weights),
            bias: put(&[OUT], 3, f32),
            lora: vec![lora(1..4, 10), lora(4..5, 20), lora(8..9, 30)],
            residual: put(&[SAMPLES, 5, OUT], 4, activations),
            modulation: put(&[SAMPLES, 2 * OUT], 5, activations),
            weight: put(&[8], 6, f32),
        }
    }

    /// The samples of it.
    fn of(&self, samples: Range<usize>) -> Self {
        let within = |at: usize| at.clamp(samples.start, samples.end) - samples.start;
        let lora =
            self.lora.iter().map(|l| Lora { samples: within(l.samples.start)..within(l.samples.end), ..l.clone() });
        let [x, residual, modulation] = [&self.x, &self.residual, &self.modulation].map(|t| t.slice(samples.clone()));
        let [w, bias, weight] = [&self.w, &self.bias, &self.weight].map(Tensor::clone);
        Self { x, w, bias, lora: lora.collect(), residual, modulation, weight }
    }

    /// All that can follow, and layers without a bias, without factors and without either.
    fn calls(&self) -> Vec<Call<'_>> {
        let gate = Chunk { modulation: &self.modulation, index: 1 };
        let followed = [
            Then::Nothing,
            Then::Activate(Activation::GeluTanh),
            Then::Add(&self.residual),
            Then::AddGated { residual: &self.residual, gate },
            Then::Normalise { weight: &self.weight, eps: 1e-6 },
        ];
        let layer = |bias: bool| Layer { weight: &self.w, bias: bias.then_some(&self.bias) };
        let of = |layer, lora, then| Call {
            kept: 2.min(self.x.dim(0)),
            ..Call::new(&self.x, Adapted { layer, lora }, then)
        };
        let all = followed.into_iter().map(|then| of(layer(true), &self.lora[..], then));
        let others = [of(layer(true), &[], Then::Nothing), of(layer(false), &self.lora, Then::Nothing)];
        all.chain(others).chain([of(layer(false), &[], Then::Nothing)]).collect()
    }

    fn forward(&self) -> Vec<Tensor> {
        let outputs = forward_group(&self.calls());
        outputs.into_iter().flat_map(|o| [Some(o.y), Some(o.hidden), o.inverse_rms].into_iter().flatten()).collect()
    }

    /// The gradient to an input of two layers, added to what is there; that through an activation; those of factors; and those
    /// to inputs of each of the two layers alone.
    fn backward(&self) -> Vec<Tensor> {
        let (dy, samples) = (&self.residual, self.x.dim(0));
        let one = Lora { samples: 0..samples, ..self.lora[0].clone() };
        let (mut added, hidden) = (crate::ops::copy::owned(&self.x), &self.x);
        let mut through = self.x.scratch_like(self.x.shape());
        let mut flat = Tensor::zeros(&self.x.device(), &[4 * (WIDTH + OUT)]);
        let plain = Branch { dy, weight: &self.w, lora: None, grad: None };
        let trained = Branch { lora: Some(&one), grad: Some([0, 4 * WIDTH]), ..plain };
        let dx = InputGrad::ThroughGelu { dx: &mut through, hidden };
        let calls = vec![
            Backward { x: Some(&self.x), branches: vec![trained, plain], dx: InputGrad::Add(&mut added) },
            Backward { x: None, branches: vec![Branch { grad: None, ..trained }], dx },
        ];
        backward_group(calls, Some(&mut flat));
        let [mut first, mut second] = [0; 2].map(|_| self.x.scratch_like(self.x.shape()));
        backward(dy, &self.w, None, Some(&one), None, InputGrad::Overwrite(&mut first));
        backward(dy, &self.w, None, None, None, InputGrad::Overwrite(&mut second));
        vec![added, through, flat, first, second]
    }
}

#[test]
fn a_library_gives_what_our_kernels_do_but_for_the_rounding_of_its_stores() {
    for (types, capability) in HALVES.into_iter().flat_map(|t| [(t, HOPPER), (t, PORTABLE)]) {
        let given = Given::new(&Device::Cpu, types);
        let run = |device: &Device| {
            let given = Given::new(device, types);
            [given.forward(), given.backward()].concat()
        };
        let own = on_vm_of(capability, |device| {
            gpu(device).choose(Products::Own).unwrap();
            run(device)
        });
        let got = on_vm_of(capability, |device| {
            choose(device);
            run(device)
        });
        let is_same = |at: usize| bits(&got[at]) == bits(&own[at]);
        let is_there = gpu(&devices()[1]).choose(Products::Cublaslt).is_ok();
        assert_ne!((0..got.len()).all(is_same), is_there, "{types:?} on {capability:?}: who has multiplied?");

        let (store, calls) = (store(types[0]), given.calls());
        let results = 2 * calls.len() + 1;
        // Where the results of each call are, of which a norm has one more.
        let places: Vec<usize> = (0..calls.len()).map(|i| 2 * i + usize::from(i > 4)).collect();
        let is_plain = |i: &usize| matches!(calls[*i].then, Then::Nothing);
        let between = (0..calls.len()).filter(is_plain).map(|i| largest(&own[places[i]])).fold(0.0, f32::max);
        // A product and what is added to it are two stores, and one of ours.
        let before = 3.0 * store * between + chains(WIDTH, &given.x, &given.w);
        let squares =
            own[0].to_host().chunks(8).map(|v| v.iter().map(|v| v * v).sum::<f32>() / 8.0).collect::<Vec<_>>();
        let inverse = squares.into_iter().fold(0f32, |most, square| most.max(1.0 / square.sqrt()));
        for (call, at) in calls.iter().zip(places) {
            let slope = match call.then {
                Then::Nothing | Then::Add(_) => 1.0,
                Then::Activate(_) => 1.2,
                Then::AddGated { .. } => (1.0 + store) * largest(&given.modulation),
                // v / rms of 8 columns has slopes whose sum is at most (1 + √8) / rms.
                Then::Normalise { weight, .. } => 4.0 * largest(weight) * inverse,
            };
            let name = format!("result {at} of {types:?} on {capability:?}");
            check(&name, &got[at], &own[at], slope * before + 3.0 * store * largest(&own[at]));
            check(&name, &got[at + 1], &own[at + 1], before);
        }
        let [added, through, flat, first, second] = [0, 1, 2, 3, 4].map(|i| results + i);
        let between = largest(&given.x) + 2.0 * (largest(&own[first]) + largest(&own[second]));
        let allowed = 6.0 * store * between + 2.0 * chains(OUT, &given.residual, &given.w);
        for at in [added, through, first, second] {
            check(&format!("gradient {at} of {types:?} on {capability:?}"), &got[at], &own[at], 1.2 * allowed);
        }
        assert!(is_same(flat), "gradients of factors are ours");
    }
}

#[test]
fn with_a_library_too_a_row_has_the_same_bits_alone_and_among_others() {
    let [_, device] = devices();
    choose(&device);
    for types in HALVES {
        let run = |samples| {
            let given = Given::new(&device, types).of(samples);
            let mut results: Vec<Tensor> = forward_group(&given.calls()).into_iter().map(|o| o.y).collect();
            let mut dx = given.x.scratch_like(given.x.shape());
            backward(&given.residual, &given.w, None, None, None, InputGrad::Overwrite(&mut dx));
            results.push(dx);
            results
        };
        let whole = run(0..SAMPLES);
        for i in [0, 3, 4, 8] {
            for (whole, alone) in whole.iter().zip(run(i..i + 1)) {
                assert_eq!(bits_of(whole, i..i + 1), bits(&alone), "sample {i} of {types:?}");
            }
        }
    }
    device.check().unwrap();
}

#[test]
fn a_region_with_products_of_a_library_is_replayed() {
    let [_, device] = devices();
    choose(&device);
    let given = Given::new(&device, HALVES[0]);
    let run = || {
        let (forwards, gradients) = device.region(|| (given.forward(), given.backward()));
        forwards.iter().chain(&gradients).map(bits).collect::<Vec<_>>()
    };
    let first = run();
    assert!((0..3).all(|_| run() == first));
    device.check().unwrap();
    assert!(gpu(&device).stats().replayed > 0, "{:?}", gpu(&device).stats());
}

#[test]
fn lines_that_begin_at_no_multiple_of_16_bytes_are_ours_with_a_library_too() {
    let run = |device: &Device| {
        let put = |shape: &[usize], seed| rounded(&random(shape, seed), DType::Bf16).to(device);
        let (x, w) = (put(&[9, 72], 1), put(&[45, 72], 2));
        bits(&forward(&x, Layer { weight: &w, bias: None }, Then::Nothing))
    };
    let [_, device] = devices();
    let own = run(&device);
    choose(&device);
    assert_eq!(own, run(&device));
    device.check().unwrap();
}
