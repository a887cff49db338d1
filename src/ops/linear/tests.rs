use super::*;
use crate::device::Device;
use crate::ops::testing::{bits, check_gradient, check_precision, devices, max_error, on_vm, random, wide};

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
    for device in devices() {
        let put = |t: Tensor| t.to(&device);
        for (rows, width, out, rank) in [(1, 3, 5, 1), (7, 33, 65, 4), (20, 130, 31, 2), (3, 300, 40, 33)] {
            let (x, weight, bias) = (random(&[rows, width], 1), random(&[out, width], 2), random(&[out], 3));
            let (a, b, dy) = (random(&[rank, width], 4), random(&[out, rank], 5), random(&[rows, out], 6));
            let [x, weight, bias, a, b, dy] = [x, weight, bias, a, b, dy].map(put);
            let layer = Layer { weight: &weight, bias: Some(&bias) };
            let lora = Lora { samples: 0..rows, a: a.clone(), b: b.clone(), scale: 0.5 };
            let f = |x: &[f64], a: &[f64], b: &[f64]| reference(x, layer, a, b, rank, 0.5);
            let (x64, a64, b64) = (wide(&x), wide(&a), wide(&b));

            let y = forward(&x, Adapted { layer, lora: std::slice::from_ref(&lora) }, Then::Nothing);
            assert!(max_error(&y, &f(&x64, &a64, &b64)) < 1e-5);

            // The gradients lie in a flat buffer, among others.
            let (at_a, at_b) = (3, 5 + rank * width);
            let mut flat = Tensor::zeros(&device, &[at_b + out * rank + 2]);
            let grad = LoraGrad { flat: &mut flat, a: at_a, b: at_b };
            let mut dx = Tensor::scratch(&device, &[rows, width]);
            backward(&dy, &weight, Some(&x), Some(&lora), Some(grad), InputGrad::Overwrite(&mut dx));
            check_gradient(&dx, &x64, &dy, |v| f(v, &a64, &b64));
            check_gradient(&flat.view(at_a, &[rank, width]), &a64, &dy, |v| f(&x64, v, &b64));
            check_gradient(&flat.view(at_b, &[out, rank]), &b64, &dy, |v| f(&x64, &a64, v));
            assert_eq!([0, 2, at_b - 1, at_b + out * rank].map(|i| flat.to_host()[i]), [0.0; 4]);
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
    for device in devices() {
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
    for device in devices() {
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
        let x = put(&[2, 9, 70], 1);
        let weights = [(50, 2), (70, 3), (20, 4)].map(|(out, seed)| put(&[out, 70], seed));
        let bias = [50, 70, 20].map(|out| put(&[out], 5));
        let lora = |out| [Lora { samples: 0..1, a: put(&[4, 70], 6), b: put(&[out, 4], 7), scale: 0.5 }];
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
