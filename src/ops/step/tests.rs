use super::*;
use crate::device::Device;
use crate::device::philox::Purpose;
use crate::ops::noise;
use crate::ops::testing::{bits, random};

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
    let inputs =
        Inputs { x: &x, velocity: &velocity, guidance: Some(2.5), history: [Some(&m1), Some(&m2)], noise: &keys };
    let next = forward(inputs, ROW);
    let e = noise::normal(&Device::Cpu, &keys, &shape);
    for i in (0..x.len()).step_by(7) {
        let (u, c) = (velocity.host()[i], velocity.host()[x.len() + i]);
        let v = u + 2.5 * (c - u);
        let mut want = ROW.a * x.host()[i] + ROW.b * v;
        want += ROW.history[0] * m1.host()[i];
        want += ROW.history[1] * m2.host()[i];
        want += ROW.s * e.host()[i];
        assert_eq!(next.host()[i].to_bits(), want.to_bits(), "element {i}");
    }
}

#[test]
fn without_noise_and_history_a_step_is_eulers_bit_for_bit_and_draws_nothing() {
    let (x, velocity) = (random(&[2, 100], 1), random(&[2, 100], 2));
    let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &[] };
    let next = forward(inputs, Row { a: 1.0, b: -0.1, ..Row::default() });
    let euler: Vec<f32> = x.host().iter().zip(velocity.host()).map(|(x, v)| x + -0.1 * v).collect();
    assert_eq!(next.host(), euler);
    assert_eq!(bits(&clean(inputs, 0.1)), bits(&next));
}

#[test]
fn residuals_are_the_mean_square_of_what_the_noise_added() {
    let (x, velocity, keys) = (random(&[2, 5000], 1), random(&[2, 5000], 2), keys(2));
    let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &keys };
    let row = Row { history: [0.0; 2], ..ROW };
    let next = forward(inputs, row);
    let e = noise::normal(&Device::Cpu, &keys, &[2, 5000]);
    for (i, found) in residuals(&next, inputs, row).into_iter().enumerate() {
        let noise = &e.host()[i * 5000..(i + 1) * 5000];
        let want = noise.iter().map(|e| f64::from(row.s * e).powi(2)).sum::<f64>() / 5000.0;
        // x' − μ takes back one rounding of x', which is at most half an ulp of a number below 8.
        assert!((found - want).abs() < 2e-7, "{found} {want}");
    }
}
