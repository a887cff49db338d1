use super::*;
use crate::device::philox::Purpose;
use crate::device::{DType, Device};
use crate::ops::linear::rounded;
use crate::ops::noise;
use crate::ops::testing::{bits, devices, on_vm, random};

fn keys(n: u32) -> Vec<Key> {
    (0..n).map(|prompt| Key { prompt, ..Key::new(3, Purpose::SamplerNoise) }).collect()
}

const ROW: Row = Row { a: 0.9, b: -0.125, history: [0.5, -0.25], s: 0.3 };

#[test]
fn every_term_is_rounded_on_its_own_in_the_order_of_the_formula() {
    // More than one piece, and a length that no vector divides.
    let shape = [3, 2, 4099];
    let [x, m1, m2] = [1, 2, 3].map(|seed| random(&shape, seed));
    let (velocity, keys) = (random(&[6, 2, 4099], 4), keys(3));
    let e = noise::normal(&Device::Cpu, &keys, &shape);
    for device in devices() {
        let [gx, gv, g1, g2] = [&x, &velocity, &m1, &m2].map(|t| t.to(&device));
        let inputs =
            Inputs { x: &gx, velocity: &gv, guidance: Some(2.5), history: [Some(&g1), Some(&g2)], noise: &keys };
        let next = forward(inputs, ROW).to_host();
        for i in (0..x.len()).step_by(7) {
            let (u, c) = (velocity.host()[i], velocity.host()[x.len() + i]);
            let v = u + 2.5 * (c - u);
            let mut want = ROW.a * x.host()[i] + ROW.b * v;
            want += ROW.history[0] * m1.host()[i];
            want += ROW.history[1] * m2.host()[i];
            want += ROW.s * e.host()[i];
            assert_eq!(next[i].to_bits(), want.to_bits(), "element {i} on {device:?}");
        }
    }
}

#[test]
fn without_noise_and_history_a_step_is_eulers_bit_for_bit_and_draws_nothing() {
    let (x, velocity) = (random(&[2, 100], 1), random(&[2, 100], 2));
    let euler: Vec<f32> = x.host().iter().zip(velocity.host()).map(|(x, v)| x + -0.1 * v).collect();
    for device in devices() {
        let (x, velocity) = (x.to(&device), velocity.to(&device));
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &[] };
        let next = forward(inputs, Row { a: 1.0, b: -0.1, ..Row::default() });
        assert_eq!(next.to_host(), euler, "{device:?}");
        assert_eq!(bits(&clean(inputs, 0.1)), bits(&next), "{device:?}");
    }
}

#[test]
fn residuals_are_the_mean_square_of_what_the_noise_added() {
    let keys = keys(2);
    let e = noise::normal(&Device::Cpu, &keys, &[2, 5000]);
    for device in devices() {
        let (x, velocity) = (random(&[2, 5000], 1).to(&device), random(&[2, 5000], 2).to(&device));
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &keys };
        let row = Row { history: [0.0; 2], ..ROW };
        let next = forward(inputs, row);
        for (i, found) in residuals(&next, inputs, row).into_iter().enumerate() {
            let noise = &e.host()[i * 5000..(i + 1) * 5000];
            let want = noise.iter().map(|e| f64::from(row.s * e).powi(2)).sum::<f64>() / 5000.0;
            // x' − μ takes back one rounding of x', which is at most half an ulp of a number below 8.
            assert!((found - want).abs() < 2e-7, "{found} {want} on {device:?}");
        }
    }
}

/// A next sample and what it leaves over, from numbers of `types`: of the sample, and of the velocity.
fn step(device: &Device, length: usize, samples: std::ops::Range<usize>, row: Row, types: [DType; 2]) -> [Tensor; 2] {
    let all = keys(9);
    let at = |t: Tensor, dtype| rounded(&t, dtype).to(device);
    let halves = random(&[2, 9, length], 4);
    let half = |k: usize| halves.slice(k..k + 1).reshape(&[9, length]).slice(samples.clone());
    let velocity = at(crate::ops::copy::concat(&[&half(0), &half(1)]), types[1]);
    let [x, m1, m2] = [1, 2, 3].map(|seed| at(random(&[9, length], seed).slice(samples.clone()), types[0]));
    let (history, noise) = ([Some(&m1), Some(&m2)], &all[samples.clone()]);
    let inputs = Inputs { x: &x, velocity: &velocity, guidance: Some(2.5), history, noise };
    let next = forward(inputs, row);
    let left = residuals(&next, inputs, row);
    [next, Tensor::from_bytes(&Device::Cpu, bytemuck::cast_slice(&left), &[8 * left.len()])]
}

/// As [`step`] of a batch on the CPU, from the same numbers in single precision; the sample is rounded at the end.
fn step_of_the_cpu(length: usize, row: Row, types: [DType; 2]) -> [Tensor; 2] {
    let wide = |t: Tensor, dtype| rounded(&rounded(&t, dtype), DType::F32);
    let [x, m1, m2] = [1, 2, 3].map(|seed| wide(random(&[9, length], seed), types[0]));
    let velocity = wide(random(&[2, 9, length], 4), types[1]).reshape(&[18, length]);
    let keys = keys(9);
    let (history, noise) = ([Some(&m1), Some(&m2)], &keys[..]);
    let inputs = Inputs { x: &x, velocity: &velocity, guidance: Some(2.5), history, noise };
    let next = rounded(&forward(inputs, row), types[0]);
    let left = residuals(&rounded(&next, DType::F32), inputs, row);
    [next, Tensor::from_bytes(&Device::Cpu, bytemuck::cast_slice(&left), &[72])]
}

#[test]
fn kernels_give_the_cpu_s_bits_for_numbers_of_any_type_and_a_sample_is_the_same_in_any_batch() {
    use DType::{Bf16, F16, F32};
    let rows = [ROW, Row { s: 0.0, ..ROW }, Row { history: [0.0, 0.5], ..ROW }];
    let types = [[F32, F32], [F32, Bf16], [F16, F16], [Bf16, F32]];
    for (i, length) in [1, 4, 7, 1023, 1024, 1025, 2052].into_iter().enumerate() {
        let (row, types) = (rows[i % rows.len()], types[i % types.len()]);
        let want = step_of_the_cpu(length, row, types);
        let got = on_vm(|device| [0..9, 4..5].map(|samples| step(device, length, samples, row, types)).concat());
        let name = format!("{length} of {types:?}");
        assert_eq!(got[0].to_raw(), want[0].to_raw(), "{name}");
        assert_eq!(got[1].to_raw(), want[1].to_raw(), "residuals of {name}");
        assert_eq!(got[2].to_raw(), got[0].slice(4..5).to_raw(), "{name} alone");
        assert_eq!(got[3].to_raw(), got[1].to_raw()[32..40], "residual of {name} alone");
    }
}
