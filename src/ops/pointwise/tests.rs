use super::*;
use crate::ops::testing::{check_batch_invariance, max_error, random, wide};

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
    for (inputs, outputs) in [(3, 1), (8, 8), (40, 24), (96, 33), (300, 97), (513, 5)] {
        let (x, w, bias) = (random(&[2, 5, 7, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let add = random(&[2, 5, 7, outputs], 4);
        for curve in CURVES {
            let bend = Bend { curve, scale: 0.7, shift: -0.3 };
            for (bias, add) in [(Some(&bias), None), (None, Some(&add)), (Some(&bias), Some(&add))] {
                let error =
                    max_error(&forward(&x, &Weight::of(&w), bias, bend, add), &reference(&x, &w, bias, bend, add));
                // Curves that saturate leave little of sums as large as these.
                let bound = 1e-6 * (inputs as f64).sqrt();
                assert!(error < bound, "{inputs} to {outputs}, {curve:?}: {error:e}");
            }
        }
    }
}

#[test]
fn curves_alone_are_those_of_layers() {
    for curve in CURVES {
        let x = random(&[3, 1000], 5);
        let want: Vec<f64> = wide(&x).into_iter().map(|v| in_f64(curve.into(), v)).collect();
        let mut y = crate::ops::copy::owned(&x);
        apply(&mut y, curve);
        assert!(max_error(&y, &want) < 1e-6, "{curve:?}");
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_gives_the_same_bits() {
    let (x, w, bias) = (random(&[9, 31, 17, 70], 1), Weight::of(&random(&[52, 70], 2)), random(&[52], 3));
    check_batch_invariance("pointwise", |r| forward(&x.slice(r), &w, Some(&bias), Curve::HardSwish, None));
}
