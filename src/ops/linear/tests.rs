mod group;
pub mod hopper;
mod library;

use super::*;
use crate::device::gpu::PORTABLE;
use crate::device::{Device, Wide};
use crate::ops::testing::{
    all_devices, bits, check_gradient, check_precision, devices, max_error, on_vm, on_vm_of, random, wide,
};

/// The operation in f64, straight from its definition.
fn reference(x: &[f64], layer: Layer, a: &[f64], b: &[f64], rank: usize, scale: f64) -> Vec<f64> {
    let (out, width) = (layer.weight.dim(0), layer.weight.dim(1));
    let (w, bias) = (wide(layer.weight), layer.bias.map_or(vec![0.0; out], wide));
    let mut y = Vec::new();
    for row in x.chunks(width) {
        let down: Vec<f64> = (0..rank).map(|r| (0..width).map(|i| row[i] * a[r * width + i]).sum()).collect();
        for o in 0..out {
            let plain: f64 = (0..width).map(|i| row[i] * w[o * width + i]).sum();
            let low: f64 = (0..rank).map(|r| down[r] * b[o * rank + r]).sum();
            y.push(plain + bias[o] + scale * low);
        }
    }
    y
}

/// The bits of some samples.
fn bits_of(t: &Tensor, samples: Range<usize>) -> Vec<u8> {
    bits(&t.slice(samples))
}

#[test]
fn forward_and_backward_match_the_definition_in_f64_at_odd_sizes() {
    for (rows, width, out, rank) in [(1, 3, 5, 1), (7, 33, 65, 4), (20, 130, 31, 2), (3, 300, 40, 33)] {
        let (x, weight, bias) = (random(&[rows, width], 1), random(&[out, width], 2), random(&[out], 3));
        let (a, b, dy) = (random(&[rank, width], 4), random(&[out, rank], 5), random(&[rows, out], 6));
        let layer = Layer { weight: &weight, bias: Some(&bias) };
        let f = |x: &[f64], a: &[f64], b: &[f64]| reference(x, layer, a, b, rank, 0.5);
        let (x64, a64, b64) = (wide(&x), wide(&a), wide(&b));

        let [cpu, gpu] = devices().map(|device| {
            let [x, weight, bias, a, b, dy] = [&x, &weight, &bias, &a, &b, &dy].map(|t| t.to(&device));
            let layer = Layer { weight: &weight, bias: Some(&bias) };
            let lora = Lora { samples: 0..rows, a, b, scale: 0.5 };
            let y = forward(&x, Adapted { layer, lora: std::slice::from_ref(&lora) }, Then::Nothing);
            assert!(max_error(&y, &f(&x64, &a64, &b64)) < 1e-5);

            // The gradients lie in a flat buffer, among others.
            let (at_a, at_b) = (3, 5 + rank * width);
            let mut flat = Tensor::zeros(&device, &[at_b + out * rank + 2]);
            let grad = LoraGrad { flat: &mut flat, a: at_a, b: at_b };
            let mut dx = Tensor::scratch(&device, &[rows, width]);
            backward(&dy, &weight, Some(&x), Some(&lora), Some(grad), InputGrad::Overwrite(&mut dx));
            assert_eq!([0, 2, at_b - 1, at_b + out * rank].map(|i| flat.to_host()[i]), [0.0; 4]);
            [dx, flat.view(at_a, &[rank, width]), flat.view(at_b, &[out, rank])]
        });
        check_gradient(&cpu[0], &x64, &dy, |v| f(v, &a64, &b64));
        check_gradient(&cpu[1], &a64, &dy, |v| f(&x64, v, &b64));
        check_gradient(&cpu[2], &b64, &dy, |v| f(&x64, &a64, v));
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            assert!(max_error(gpu, &wide(cpu)) < 1e-5);
        }
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    for device in devices() {
        let put = |shape: &[usize], seed| random(shape, seed).to(&device);
        let (x, w) = (put(&[4, 6], 1), put(&[5, 6], 2));
        let lora = Lora { samples: 0..4, a: put(&[2, 6], 3), b: put(&[5, 2], 4), scale: 2.0 };
        let dy = put(&[4, 5], 5);
        let run = |flat: &mut Tensor, dx: InputGrad| {
            backward(&dy, &w, Some(&x), Some(&lora), Some(LoraGrad { flat, a: 0, b: 12 }), dx);
        };
        let zeros = |shape: &[usize]| Tensor::zeros(&device, shape);
        let (mut flat, mut dx) = (zeros(&[22]), zeros(&[4, 6]));
        for _ in 0..2 {
            run(&mut flat, InputGrad::Add(&mut dx));
        }
        let (mut once, mut once_x) = (zeros(&[22]), Tensor::scratch(&device, &[4, 6]));
        run(&mut once, InputGrad::Overwrite(&mut once_x));
        for (twice, once) in [(flat, once), (dx, once_x)] {
            let (twice, once) = (twice.to_host(), once.to_host());
            assert!(twice.iter().zip(once).all(|(t, o)| (t - 2.0 * o).abs() <= 1e-5 * o.abs().max(1.0)));
        }
    }
}

#[test]
fn samples_of_one_batch_go_through_their_own_factors() {
    for device in all_devices() {
        let put = |shape: &[usize], seed| random(shape, seed).to(&device);
        let (x, weight, bias) = (put(&[5, 3, 40], 1), put(&[33, 40], 2), put(&[33], 3));
        let layer = Layer { weight: &weight, bias: Some(&bias) };
        let lora =
            |samples, seed: u64| Lora { samples, a: put(&[4, 40], seed), b: put(&[33, 4], seed + 1), scale: 0.5 };
        let both = [lora(0..2, 10), lora(4..5, 20)];
        let whole = forward(&x, Adapted { layer, lora: &both }, Then::Nothing);
        let alone = |samples: Range<usize>, lora: Option<Lora>| {
            let lora: Vec<Lora> = lora.into_iter().map(|l| Lora { samples: 0..samples.len(), ..l }).collect();
            let y = forward(&x.slice(samples.clone()), Adapted { layer, lora: &lora }, Then::Nothing);
            assert_eq!(bits(&y), bits_of(&whole, samples));
        };
        alone(0..2, Some(both[0].clone()));
        alone(2..4, None);
        alone(4..5, Some(both[1].clone()));
    }
}

#[test]
fn what_follows_a_layer_is_done_to_its_result() {
    let (b, n, width, out) = (3, 7, 33, 45);
    for device in all_devices() {
        let put = |shape: &[usize], seed| random(shape, seed).to(&device);
        let (x, weight, bias) = (put(&[b, n, width], 1), put(&[out, width], 2), put(&[out], 3));
        let layer = Layer { weight: &weight, bias: Some(&bias) };
        let lora = [Lora { samples: 1..3, a: put(&[4, width], 4), b: put(&[out, 4], 5), scale: 0.5 }];
        let layer = Adapted { layer, lora: &lora };
        let (residual, modulation) = (put(&[b, n, out], 6), put(&[b, 2 * out], 7));
        let plain = forward(&x, layer, Then::Nothing);

        let added = forward(&x, layer, Then::Add(&residual));
        let want: Vec<f64> = wide(&plain).iter().zip(wide(&residual)).map(|(y, r)| y + r).collect();
        assert!(max_error(&added, &want) < 1e-7);

        let gate = Chunk { modulation: &modulation, index: 1 };
        let gated = forward(&x, layer, Then::AddGated { residual: &residual, gate });
        let (y, r, m) = (wide(&plain), wide(&residual), wide(&modulation));
        let gate = |i: usize| m[i / (n * out) * 2 * out + out + i % out];
        let want: Vec<f64> = (0..y.len()).map(|i| r[i] + gate(i) * y[i]).collect();
        assert!(max_error(&gated, &want) < 1e-6);

        for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu] {
            let mut want = Tensor::from_slice(&device, &plain.to_host(), plain.shape());
            crate::ops::activation::forward(&mut want, activation);
            assert_eq!(bits(&forward(&x, layer, Then::Activate(activation))), bits(&want), "{activation:?}");
            for kept in 0..=b {
                let (y, hidden) = forward_activated(&x, layer, activation, kept);
                assert_eq!((bits(&y), bits(&hidden)), (bits(&want), bits_of(&plain, 0..kept)), "{activation:?}");
            }
        }
    }
}

#[test]
fn layers_of_one_input_give_the_bits_they_give_alone() {
    for device in devices() {
        let put = |shape: &[usize], seed| random(shape, seed).to(&device);
        let x = put(&[6, 3, 70], 1);
        let weights = [(50, 2), (70, 3), (20, 4)].map(|(out, seed)| put(&[out, 70], seed));
        let bias = [50, 70, 20].map(|out| put(&[out], 5));
        // More additions than go into a launch.
        let lora = |out| {
            let of = |i: usize| {
                let (a, b) = (put(&[4, 70], 6 + i as u64), put(&[out, 4], 16 + i as u64));
                Lora { samples: i..i + 1, a, b, scale: 0.5 }
            };
            [0, 1, 2, 4, 5].map(of)
        };
        let lora = [lora(50), lora(70), lora(20)];
        let of = |i: usize| Adapted {
            layer: Layer { weight: &weights[i], bias: (i != 1).then_some(&bias[i]) },
            lora: if i == 2 { &[] } else { &lora[i] },
        };
        let together = forward_each(&x, [of(0), of(1), of(2)]);
        for (i, y) in together.iter().enumerate() {
            assert_eq!(bits(y), bits(&forward(&x, of(i), Then::Nothing)), "layer {i} on {device:?}");
        }
    }
}

#[test]
fn merged_weights_do_what_the_layer_and_its_factors_did() {
    let types = [DType::F32, DType::F16, DType::Bf16];
    for (dtype, device) in types.into_iter().flat_map(|t| devices().map(|d| (t, d))) {
        let put = |shape: &[usize], seed| random(shape, seed).to(&device);
        let weight = rounded(&put(&[5, 7], 1), dtype);
        let (a, b) = (put(&[2, 7], 2), put(&[5, 2], 3));
        let merged = merge(&weight, &a, &b, 0.5);
        assert_eq!(merged.dtype(), dtype);
        let (w, a, b) = (wide(&weight), wide(&a), wide(&b));
        let low = |o: usize, i: usize| (0..2).map(|r| b[o * 2 + r] * a[r * 7 + i]).sum::<f64>();
        let want: Vec<f64> = (0..35).map(|at| w[at] + 0.5 * low(at / 7, at % 7)).collect();
        // Half an ulp of the type, and of the sum in f32.
        let ulp = match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::Bf16 => 2f64.powi(-8),
            _ => 2f64.powi(-23),
        };
        assert!(max_error(&merged, &want) <= ulp, "{dtype:?} on {device:?}");
    }
}

/// How numbers are rounded: operands of products, and sums.
#[derive(Clone, Copy)]
struct Rounding {
    operand: Option<DType>,
    /// Operands that are in f32 are rounded to 10 bits of mantissa.
    tf32: bool,
    sum: bool,
}

impl Rounding {
    const EXACT: Self = Self { operand: None, tf32: false, sum: false };

    fn operands(self, v: &[f64]) -> Vec<f64> {
        v.iter().map(|v| self.operand(*v)).collect()
    }

    fn operand(self, v: f64) -> f64 {
        match self.operand {
            Some(DType::F16) => half::f16::from_f64(v).to_f64(),
            Some(DType::Bf16) => half::bf16::from_f64(v).to_f64(),
            _ if self.tf32 => f64::from(f32::from_bits(((v as f32).to_bits() + 0x1000) & 0xFFFF_E000)),
            _ => self.sum(v),
        }
    }

    fn sum(self, v: f64) -> f64 {
        if self.sum { f64::from(v as f32) } else { v }
    }

    /// `c += a·b`, element by element as `at` says where they lie: `[m, n]` of `depth` steps.
    fn multiply(
        self,
        c: &mut [f64],
        n: usize,
        depth: usize,
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) {
        for (i, c) in c.iter_mut().enumerate() {
            *c = (0..depth).fold(*c, |sum, k| self.sum(sum + a(i / n, k) * b(k, i % n)));
        }
    }
}

/// A layer with factors of all rows, in f64.
struct Case {
    size: [usize; 4],
    scale: f64,
    x: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    dy: Vec<f64>,
}

impl Case {
    fn forward(&self, r: Rounding) -> Vec<f64> {
        let [m, k, n, rank] = self.size;
        let [x, w, a, b] = [&self.x, &self.w, &self.a, &self.b].map(|v| r.operands(v));
        let (mut t, mut y) = (vec![0.0; m * rank], vec![0.0; m * n]);
        r.multiply(&mut t, rank, k, |i, s| x[i * k + s], |s, j| a[j * k + s]);
        t.iter_mut().for_each(|t| *t = r.operand(self.scale * *t));
        r.multiply(&mut y, n, k, |i, s| x[i * k + s], |s, j| w[j * k + s]);
        r.multiply(&mut y, n, rank, |i, s| t[i * rank + s], |s, j| b[j * rank + s]);
        y.iter_mut().enumerate().for_each(|(i, y)| *y += self.bias[i % n]);
        y
    }

    /// `dx`, `dA`, `dB`.
    fn backward(&self, r: Rounding) -> [Vec<f64>; 3] {
        let [m, k, n, rank] = self.size;
        let [x, w, a, b, dy] = [&self.x, &self.w, &self.a, &self.b, &self.dy].map(|v| r.operands(v));
        let (mut t, mut u) = (vec![0.0; m * rank], vec![0.0; m * rank]);
        r.multiply(&mut t, rank, k, |i, s| x[i * k + s], |s, j| a[j * k + s]);
        r.multiply(&mut u, rank, n, |i, s| dy[i * n + s], |s, j| b[s * rank + j]);
        [&mut t, &mut u].into_iter().flatten().for_each(|v| *v = r.operand(self.scale * *v));
        let (mut dx, mut da, mut db) = (vec![0.0; m * k], vec![0.0; rank * k], vec![0.0; n * rank]);
        r.multiply(&mut dx, k, n, |i, s| dy[i * n + s], |s, j| w[s * k + j]);
        r.multiply(&mut dx, k, rank, |i, s| u[i * rank + s], |s, j| a[s * k + j]);
        r.multiply(&mut da, k, m, |i, s| u[s * rank + i], |s, j| x[s * k + j]);
        r.multiply(&mut db, rank, m, |i, s| dy[s * n + i], |s, j| t[s * rank + j]);
        [dx, da, db]
    }
}

/// Types of activations and weights, and of the arithmetic forward and backward.
const TYPES: [[DType; 4]; 6] = {
    use DType::{Bf16, F16, F32};
    [
        [F32, F32, F32, F32],
        [F32, Bf16, Bf16, Bf16],
        [F32, F16, F16, Bf16],
        [Bf16, Bf16, Bf16, Bf16],
        [F16, F16, F16, F16],
        [Bf16, F32, F32, F32],
    ]
};

struct Given {
    size: [usize; 4],
    types: [DType; 4],
    tf32: bool,
    /// `x`, `dy`, `W`, `b`, `A`, `B`.
    tensors: [Tensor; 6],
}

impl Given {
    fn new(size: [usize; 4], types: [DType; 4]) -> Self {
        let [m, k, n, rank] = size;
        let of = |shape: &[usize], seed, dtype| rounded(&random(shape, seed), dtype);
        let [activations, weights, ..] = types;
        let (x, dy, w) = (of(&[m, k], 1, activations), of(&[m, n], 2, activations), of(&[n, k], 3, weights));
        let tensors = [x, dy, w, random(&[n], 4), random(&[rank, k], 5), random(&[n, rank], 6)];
        Self { size, types, tf32: false, tensors }
    }

    /// With products in TF32 where they are in f32.
    fn in_tf32(mut self) -> Self {
        self.tensors[2] = self.tensors[2].clone().multiplied(Some(Wide::Tf32));
        self.types = [self.types[0], self.types[1], DType::F32, DType::F32];
        Self { tf32: true, ..self }
    }

    /// `y`, `dx`, `dA`, `dB`.
    fn run(&self, device: &Device) -> [Tensor; 4] {
        let [m, k, n, rank] = self.size;
        let [x, dy, w, bias, a, b] = self.tensors.each_ref().map(|t| t.to(device));
        let layer = Layer { weight: &w, bias: Some(&bias) };
        let lora = Lora { samples: 0..m, a, b, scale: 0.3 };
        let y = forward(&x, Adapted { layer, lora: std::slice::from_ref(&lora) }, Then::Nothing);
        let mut dx = dy.scratch_like(&[m, k]);
        let mut flat = Tensor::zeros(device, &[rank * (k + n)]);
        let grad = LoraGrad { flat: &mut flat, a: 0, b: rank * k };
        backward(&dy, &w, Some(&x), Some(&lora), Some(grad), InputGrad::Overwrite(&mut dx));
        [y, dx, flat.view(0, &[rank, k]), flat.view(rank * k, &[n, rank])]
    }
}

#[test]
fn kernels_are_as_exact_as_their_types_allow() {
    // Fewer tiles in depth than stages and more; below, at and off the edges of tiles; rows of 16 bytes or not.
    let sizes = [[1, 8, 8, 1], [20, 200, 264, 32], [129, 45, 67, 5], [64, 64, 128, 33]];
    let mut given: Vec<Given> = sizes.into_iter().flat_map(|s| TYPES.map(|t| Given::new(s, t))).collect();
    // Gradients of several chunks of rows, the last of them short.
    given.extend([0, 3, 4].map(|t| Given::new([1100, 8, 16, 2], TYPES[t])));
    // Factors of many panels of columns.
    given.extend([3, 4].map(|t| Given::new([300, 24, 40, 140], TYPES[t])));
    // Weights in f32, in bf16 and, with activations of the same type, in bf16 once more.
    given.extend(sizes.into_iter().flat_map(|s| [0, 1, 3].map(|t| Given::new(s, TYPES[t]).in_tf32())));
    let run = |device: &Device| given.iter().flat_map(|g| g.run(device)).collect();
    let (got, portable) = (on_vm(run), on_vm_of(PORTABLE, run));
    let both = got.chunks(4).zip(&given).chain(portable.chunks(4).zip(&given));
    for (got, Given { size, types, tf32, tensors }) in both {
        let [x, dy, w, bias, a, b] = tensors.each_ref().map(wide);
        let case = Case { size: *size, scale: f64::from(0.3f32), x, w, bias, a, b, dy };
        let all = |forwards, backwards| {
            let [dx, da, db] = case.backward(backwards);
            [case.forward(forwards), dx, da, db]
        };
        let [forwards, backwards] = [types[2], types[3]].map(|t| Rounding { operand: Some(t), tf32: *tf32, sum: true });
        let (want, reference) = (all(Rounding::EXACT, Rounding::EXACT), all(forwards, backwards));
        for (i, part) in ["y", "dx", "dA", "dB"].iter().enumerate() {
            let reference: Vec<f32> = reference[i].iter().map(|v| *v as f32).collect();
            let reference = Tensor::from_slice(&Device::Cpu, &reference, &[reference.len()]);
            check_precision(&format!("{part} of {size:?} {types:?}, tf32: {tf32}"), &got[i], &reference, &want[i]);
        }
    }
}

#[test]
fn weights_that_are_multiplied_in_f32_are_as_if_stored_in_it_and_tf32_is_f32_but_on_tensor_cores() {
    let of = |w: &Tensor, device: &Device| {
        let (x, w) = (random(&[9, 72], 1).to(device), w.to(device));
        let lora =
            Lora { samples: 0..9, a: random(&[4, 72], 3).to(device), b: random(&[40, 4], 4).to(device), scale: 0.5 };
        let layer = Adapted { layer: Layer { weight: &w, bias: None }, lora: std::slice::from_ref(&lora) };
        let y = forward(&x, layer, Then::Nothing);
        let mut dx = x.scratch_like(x.shape());
        let mut flat = Tensor::zeros(device, &[4 * (72 + 40)]);
        backward(&y, &w, None, None, None, InputGrad::Overwrite(&mut dx));
        let grad = LoraGrad { flat: &mut flat, a: 0, b: 4 * 72 };
        backward(&y, &w, Some(&x), Some(&lora), Some(grad), InputGrad::Skip);
        [y, dx, flat].map(|t| bits(&t))
    };
    for dtype in [DType::F16, DType::Bf16] {
        let half = rounded(&random(&[40, 72], 2), dtype);
        let single = rounded(&half, DType::F32);
        for device in devices() {
            assert!(of(&half.clone().multiplied(Some(Wide::F32)), &device) == of(&single, &device), "{device:?}");
            let [tf32, f32] = [Some(Wide::Tf32), None].map(|wide| of(&single.clone().multiplied(wide), &device));
            assert_eq!(tf32 == f32, matches!(device, Device::Cpu), "{device:?}");
        }
    }
}

#[test]
fn in_single_precision_kernels_give_the_cpu_s_bits() {
    let (x, w, bias) = (random(&[3, 11, 600], 1), random(&[70, 600], 2), random(&[70], 3));
    let lora =
        |samples, seed: u64| Lora { samples, a: random(&[5, 600], seed), b: random(&[70, 5], seed + 1), scale: 0.5 };
    let run = |device: &Device| {
        let [x, w, bias] = [&x, &w, &bias].map(|t| t.to(device));
        let lora = [lora(0..1, 4), lora(2..3, 6)].map(|l| Lora { a: l.a.to(device), b: l.b.to(device), ..l });
        let layer = Layer { weight: &w, bias: Some(&bias) };
        let adapted = Adapted { layer, lora: &lora };
        let mut dx = x.scratch_like(x.shape());
        let y = forward(&x, adapted, Then::Activate(Activation::GeluTanh));
        backward(&y, &w, None, None, None, InputGrad::Overwrite(&mut dx));
        vec![y, dx]
    };
    let (cpu, gpu) = (run(&Device::Cpu), on_vm(run));
    assert!(cpu.iter().zip(&gpu).all(|(c, g)| bits(c) == bits(g)));
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    // All kernels, by type and width; factors of some samples; chains that end within a tile.
    let [_, device] = devices();
    let tf32 = (TYPES[0], Some(Wide::Tf32));
    let types = TYPES.into_iter().map(|t| (t, None)).chain([tf32]);
    for (([activations, weights, ..], wide), out) in types.flat_map(|t| [(t, 40), (t, 264)]) {
        let put = |shape: &[usize], seed, dtype| rounded(&random(shape, seed), dtype).to(&device);
        let (x, w) = (put(&[9, 15, 72], 1, activations), put(&[out, 72], 2, weights).multiplied(wide));
        let layer = Layer { weight: &w, bias: None };
        let lora = |samples, seed: u64| {
            let (a, b) = (put(&[4, 72], seed, DType::F32), put(&[out, 4], seed + 1, DType::F32));
            Lora { samples, a, b, scale: 0.3 }
        };
        let lora = [lora(1..4, 10), lora(4..5, 20), lora(8..9, 30)];
        let (residual, modulation) = (put(&[9, 15, out], 3, activations), put(&[9, 2 * out], 4, activations));
        let run = |samples: Range<usize>| {
            let of = |l: &Lora| {
                let within = |at: usize| at.clamp(samples.start, samples.end) - samples.start;
                Lora { samples: within(l.samples.start)..within(l.samples.end), ..l.clone() }
            };
            let lora = lora.each_ref().map(of);
            let (residual, modulation) = (residual.slice(samples.clone()), modulation.slice(samples.clone()));
            let gate = Chunk { modulation: &modulation, index: 1 };
            let then = Then::AddGated { residual: &residual, gate };
            let y = forward(&x.slice(samples.clone()), Adapted { layer, lora: &lora }, then);
            let mut dx = y.scratch_like(&[samples.len(), 15, 72]);
            let one = Lora { samples: 0..samples.len(), ..lora[0].clone() };
            backward(&residual, &w, None, Some(&one), None, InputGrad::Overwrite(&mut dx));
            [y, dx]
        };
        let whole = run(0..9);
        for i in [0, 3, 4, 8] {
            let name = format!("sample {i} of {activations:?} by {weights:?}, {out} columns");
            for (whole, alone) in whole.iter().zip(run(i..i + 1)) {
                assert_eq!(bits_of(whole, i..i + 1), bits(&alone), "{name}");
            }
        }
    }
    device.check().unwrap();
}

#[test]
fn factors_that_are_not_finite_reach_no_row_but_their_own() {
    let rank = 4;
    for (device, out) in all_devices().into_iter().flat_map(|d| [(d.clone(), 40), (d, 264)]) {
        // A CPU's activations are in f32.
        let halves = [(DType::F16, DType::F16), (DType::Bf16, DType::Bf16)];
        let types = [DType::F32, DType::F16, DType::Bf16].map(|w| (DType::F32, w));
        for (of_x, dtype) in types.into_iter().chain(halves.into_iter().filter(|_| !matches!(device, Device::Cpu))) {
            let x = rounded(&random(&[4, 15, 72], 1), of_x).to(&device);
            let w = rounded(&random(&[out, 72], 2), dtype).to(&device);
            let lora = |samples, seed: u64, bad: Option<f32>| {
                let [mut a, mut b] = [random(&[rank, 72], seed), random(&[out, rank], seed + 1)];
                if let Some(bad) = bad {
                    a.host_mut()[100] = bad;
                    b.host_mut()[7] = bad;
                }
                Lora { samples, a: a.to(&device), b: b.to(&device), scale: 0.5 }
            };
            let run = |bad| {
                let lora = [lora(1..2, 3, bad), lora(2..3, 5, None)];
                let layer = Layer { weight: &w, bias: None };
                forward(&x, Adapted { layer, lora: &lora }, Then::Nothing)
            };
            let want = run(None);
            for bad in [f32::NAN, f32::INFINITY] {
                let got = run(Some(bad));
                for sample in [0..1, 2..4] {
                    assert_eq!(bits_of(&got, sample.clone()), bits_of(&want, sample), "{bad}, {dtype:?}, {device:?}");
                }
                assert!(got.slice(1..2).to_host().iter().any(|v| !v.is_finite()), "{bad} is seen, {dtype:?}");
            }
        }
    }
}

#[test]
fn what_follows_is_done_in_single_precision_and_rounded_once() {
    let (size, rank) = ([2, 35, 64, 264], 4);
    let [b, n, width, out] = size;
    for dtype in [DType::F16, DType::Bf16] {
        let of = |shape: &[usize], seed| rounded(&random(shape, seed), dtype);
        let (x, w, bias) = (of(&[b, n, width], 1), of(&[out, width], 2), random(&[out], 3));
        let (down, up) = (random(&[rank, width], 4), random(&[out, rank], 5));
        let (residual, modulation) = (of(&[b, n, out], 6), of(&[b, 3 * out], 7));
        let got = on_vm(|device| {
            let [x, w, bias, residual, modulation] = [&x, &w, &bias, &residual, &modulation].map(|t| t.to(device));
            let single = rounded(&x, DType::F32);
            let lora = [Lora { samples: 1..2, a: down.to(device), b: up.to(device), scale: 0.5 }];
            let layer = Adapted { layer: Layer { weight: &w, bias: Some(&bias) }, lora: &lora };
            let gate = Chunk { modulation: &modulation, index: 2 };
            let (active, hidden) = forward_activated(&x, layer, Activation::GeluTanh, 1);
            let plain = forward(&single, layer, Then::Nothing);
            let added = forward(&x, layer, Then::Add(&residual));
            let gated = forward(&x, layer, Then::AddGated { residual: &residual, gate });
            vec![plain, active, hidden, added, gated]
        });
        let (y, r, m) = (got[0].host(), residual.to_host(), modulation.to_host());
        let mut active = Tensor::from_slice(&Device::Cpu, y, got[0].shape());
        crate::ops::activation::forward(&mut active, Activation::GeluTanh);
        let gate = |i: usize| m[i / (n * out) * 3 * out + 2 * out + i % out];
        let added: Vec<f32> = y.iter().zip(&r).map(|(y, r)| y + r).collect();
        let gated: Vec<f32> = (0..y.len()).map(|i| r[i] + gate(i) * y[i]).collect();
        // An activation of halves may take the device's approximate functions: of e^v to 2 units in the last place, of 1 / v
        // to 1. With the roundings on the way to them that is less than 2⁻²¹ of what it is given.
        let around = |by: f32| -> Vec<f32> {
            let moved = active.host().iter().zip(y).map(|(a, v)| a + by * v.abs());
            rounded(&Tensor::from_slice(&Device::Cpu, &moved.collect::<Vec<_>>(), got[1].shape()), dtype).to_host()
        };
        let (least, most) = (around(-2f32.powi(-21)), around(2f32.powi(-21)));
        let within = got[1].to_host().iter().zip(least.iter().zip(&most)).all(|(v, (l, m))| l <= v && v <= m);
        assert!(within, "{dtype:?}");
        for (got, want) in got[2..].iter().zip([&y[..n * out], &added, &gated]) {
            let want = rounded(&Tensor::from_slice(&Device::Cpu, want, got.shape()), dtype);
            assert_eq!(bits(got), bits(&want), "{dtype:?}");
        }
    }
}
