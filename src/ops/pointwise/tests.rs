use super::*;
use crate::device::Device;
use crate::ops::copy::owned;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, on_vm, random, wide};

const CURVES: [Curve; 7] = [
    Curve::Line,
    Curve::Relu,
    Curve::HardSwish,
    Curve::HardSigmoid { slope: 0.2 },
    Curve::HardSigmoid { slope: 1.0 / 6.0 },
    Curve::Silu,
    Curve::Sigmoid,
];

fn in_f64(Bend { curve, scale, shift }: Bend, x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    let y = match curve {
        Curve::Line => x,
        Curve::Relu => x.max(0.0),
        Curve::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        Curve::HardSigmoid { slope } => (x * f64::from(slope) + 0.5).clamp(0.0, 1.0),
        Curve::Silu => x * sigmoid,
        Curve::Sigmoid => sigmoid,
    };
    y * f64::from(scale) + f64::from(shift)
}

/// The layer in f64, straight from its definition.
fn reference(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, bend: Bend, add: Option<&Tensor>) -> Vec<f64> {
    let (inputs, outputs) = (x.width(), w.dim(0));
    let (bias, add) = (bias.map(wide), add.map(wide));
    let (x, w) = (wide(x), wide(w));
    let of = |i: usize| {
        let (row, out) = (i / outputs, i % outputs);
        let sum: f64 = (0..inputs).map(|k| x[row * inputs + k] * w[out * inputs + k]).sum();
        in_f64(bend, sum + bias.as_ref().map_or(0.0, |b| b[out])) + add.as_ref().map_or(0.0, |a| a[i])
    };
    (0..x.len() / inputs * outputs).map(of).collect()
}

#[test]
fn layers_match_the_definition_in_f64_for_every_curve() {
    // Below, at and off what a panel and a chain of sums hold.
    for (inputs, outputs) in [(3, 1), (8, 8), (40, 24), (300, 97), (513, 5)] {
        let (x, w, bias) = (random(&[2, 5, 7, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let add = random(&[2, 5, 7, outputs], 4);
        for curve in CURVES {
            let bend = Bend { curve, scale: 0.7, shift: -0.3 };
            for (bias, add) in [(Some(&bias), None), (None, Some(&add)), (Some(&bias), Some(&add))] {
                let want = reference(&x, &w, bias, bend, add);
                let run = |device: &Device| {
                    let [bias, add] = [bias, add].map(|t| t.map(|t| t.to(device)));
                    let weight = Weight::of(&w.to(device));
                    forward(&x.to(device), &weight, bias.as_ref(), bend, add.as_ref())
                };
                let all = devices().map(|device| run(&device));
                let error = max_error(&all[0], &want);
                // Curves that saturate leave little of sums as large as these.
                let bound = 1e-6 * (inputs as f64).sqrt();
                assert!(error < bound, "{inputs} to {outputs}, {curve:?}: {error:e}");
                assert!(bits(&all[0]) == bits(&all[1]), "{inputs} to {outputs}, {curve:?}: a GPU gives other bits");
            }
        }
    }
}

#[test]
fn curves_alone_are_those_of_layers() {
    for curve in CURVES {
        let x = random(&[3, 1000], 5);
        let want: Vec<f64> = wide(&x).into_iter().map(|v| in_f64(curve.into(), v)).collect();
        let all = devices().map(|device| {
            let mut y = owned(&x.to(&device));
            apply(&mut y, curve);
            y
        });
        assert!(max_error(&all[0], &want) < 1e-6, "{curve:?}");
        assert!(bits(&all[0]) == bits(&all[1]), "{curve:?}: a GPU gives other bits");
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let (x, w, bias) = (random(&[9, 31, 17, 70], 1), Weight::of(&random(&[52, 70], 2)), random(&[52], 3));
    check_batch_invariance("pointwise", |r| forward(&x.slice(r), &w, Some(&bias), Curve::HardSwish, None));
}

#[test]
fn what_is_not_a_number_stays_so_on_every_device() {
    let x = Tensor::from_slice(&Device::Cpu, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0, 0.0], &[5]);
    for curve in CURVES {
        let all = devices().map(|device| {
            let mut y = owned(&x.to(&device));
            apply(&mut y, curve);
            y.to_host()
        });
        let same = all[0].iter().zip(&all[1]).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
        assert!(same, "{curve:?}: {all:?}");
    }
}

#[test]
fn kernels_give_a_sample_the_same_bits_in_any_batch_and_whatever_the_order() {
    // More rows than a block has; the second is not aligned to 16 bytes.
    for (inputs, outputs) in [(24, 40), (5, 16)] {
        let (x, w, bias) = (random(&[3, 7, 9, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let run = |device: &Device, samples: std::ops::Range<usize>| {
            let (x, w, bias) = (x.slice(samples).to(device), Weight::of(&w.to(device)), bias.to(device));
            forward(&x, &w, Some(&bias), Curve::HardSwish, None)
        };
        let got = on_vm(|device| vec![run(device, 0..3), run(device, 1..2)]);
        assert!(bits(&got[0].slice(1..2)) == bits(&got[1]), "{inputs} to {outputs}");
    }
}
