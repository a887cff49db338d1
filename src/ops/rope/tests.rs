use super::*;
use crate::device::DType;
use crate::ops::copy::owned;
use crate::ops::linear::rounded;
use crate::ops::testing::{bits, check_batch_invariance, devices, max_error, on_vm, random, wide};

#[test]
fn pairs_of_a_head_are_turned_by_their_position() {
    let (n, heads, d) = (7, 3, 8);
    for device in devices() {
        let x = random(&[2, n, heads * d], 1).to(&device);
        let mut y = owned(&x);
        forward(&mut y, heads, 100.0);
        let (x, y) = (wide(&x), wide(&y));
        check(&x, &y, [n, heads, d]);
    }
}

fn check(x: &[f64], y: &[f64], [n, heads, d]: [usize; 3]) {
    for (at, token) in (0..2 * n).flat_map(|token| (0..heads).map(move |h| ((token * heads + h) * d, token))) {
        for i in 0..d / 2 {
            let angle = (token % n) as f64 * 100f64.powf(-2.0 * i as f64 / d as f64);
            let (a, b) = (x[at + i], x[at + i + d / 2]);
            let want = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
            let off = (y[at + i] - want[0]).abs().max((y[at + i + d / 2] - want[1]).abs());
            assert!(off < 1e-5, "token {token}, pair {i}: off by {off}");
        }
    }
}

#[test]
fn a_sample_alone_and_in_a_batch_is_turned_alike() {
    let x = random(&[9, 33, 64], 2);
    check_batch_invariance("rope", |r| {
        let mut y = owned(&x.slice(r));
        forward(&mut y, 4, 1e4);
        y
    });
}

#[test]
fn kernels_turn_far_positions_as_the_cpu_does_in_every_type_and_batch() {
    // The first pair is turned by 1 a position: 1999 is 318 turns. An odd number of pairs, and an even one.
    for (heads, half) in [(1, 3), (2, 4)] {
        let (n, theta) = (2000, 10.0);
        let x = random(&[2, n, heads * 2 * half], 3);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let x = rounded(&x, dtype);
            let run = |device: &_, samples: std::ops::Range<usize>| {
                let mut y = owned(&x.slice(samples).to(device));
                forward(&mut y, heads, theta);
                y
            };
            let got = on_vm(|device| vec![run(device, 0..2), run(device, 1..2)]);
            assert!(bits(&got[0].slice(1..2)) == bits(&got[1]), "{half} pairs in {dtype:?}");
            let mut want = owned(&crate::ops::copy::cast(&x, DType::F32));
            forward(&mut want, heads, theta);
            // Sine and cosine to 2^-23, two products and a sum; and what the type rounds.
            let rounding = match dtype {
                DType::F16 => 2f64.powi(-11),
                DType::Bf16 => 2f64.powi(-8),
                _ => 0.0,
            };
            let error = max_error(&got[0], &wide(&want));
            assert!(error < rounding + 4e-7, "{half} pairs in {dtype:?}: off by {error:e}");
        }
    }
}
