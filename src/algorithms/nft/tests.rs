use super::super::testing::{Operands, check_golden_of, points};
use super::*;
use crate::device::{Device, Tensor};
use crate::ops::testing::{check_gradient, wide};

fn nft(change: impl FnOnce(&mut NftKeys)) -> Nft {
    let mut keys = NftKeys::default();
    change(&mut keys);
    Nft::new(&keys, &Schedule::with_shift(3.0), 10, 1024).unwrap()
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let of = |nft: &Nft| Operands::golden().evaluate(nft, &points(&TIMES, &[1.0, -2.0, 0.0, 7.0]), 4);
    // The two sides of an image pull in opposite directions.
    let check = |nft: Nft, want| check_golden_of(of(&nft), want, 0.02);
    check(nft(|_| ()), [6.56362884, 0.0288956318, 0.0185860535, -0.0375156202]);
    check(nft(|k| k.beta = 0.1), [49.3539779, 0.0163473441, 0.0194251021, -0.0420272702]);
    let positive = nft(|k| k.advantage_mode = AdvantageMode::PositiveOnly);
    check(positive, [6.52340565, 0.0288956318, -0.000382552649, -0.0375156202]);
}

/// §14.2: advantages from −5 to 5 become 0 to 1, and what is beyond counts as that.
#[test]
fn t15_an_advantage_of_zero_is_half_optimal_and_the_clip_none_or_all() {
    let nft = nft(|_| ());
    let found = [-7.0, -5.0, 0.0, 2.5, 5.0, 9.0].map(|a| nft.optimality(a));
    assert_eq!(found, [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]);
}

/// §14.7: where the policy is the lagged one and no image is better than another, the two sides cancel.
#[test]
fn an_image_that_is_as_good_as_bad_moves_nothing() {
    let mut operands = Operands::random(3, 32);
    operands.theta = operands.old.clone();
    let nft = nft(|k| (k.beta, k.kl_weight) = (0.3, 0.0));
    let (_, dv) = operands.evaluate(&nft, &points(&[0.9, 0.5, 0.1], &[0.0; 3]), 3);
    assert!(wide(&dv).iter().all(|v| v.abs() < 1e-7), "{:?}", wide(&dv));
}

/// §14.7: the adaptive weights are constants.
#[test]
fn t13_t14_gradient_matches_finite_differences_with_frozen_weights() {
    let (operands, times, advantages) = (Operands::random(3, 32), [0.9, 0.5, 0.1], [3.0, -1.0, 0.5]);
    let nft = nft(|k| k.beta = 0.4);
    let (loss, dv) = operands.evaluate(&nft, &points(&times, &advantages), 3);
    let [theta, reference, old, noise, x0] =
        [&operands.theta, &operands.reference, &operands.old, &operands.noise, &operands.x0].map(wide);
    let side = |v: &[f64], i: usize, sign: f64| old[i] + sign * 0.4 * (v[i] - old[i]) - (noise[i] - x0[i]);
    let of = |v: &[f64]| -> Vec<f64> {
        let row = |row: usize| {
            let (range, t) = (row * 32..(row + 1) * 32, f64::from(times[row]));
            let mean = |f: &dyn Fn(usize) -> f64| range.clone().map(f).sum::<f64>() / 32.0;
            let r = nft.optimality(advantages[row]);
            let matched = |sign: f64| {
                let weight = t * mean(&|i| side(&theta, i, sign).abs());
                t * t * mean(&|i| side(v, i, sign).powi(2)) / weight
            };
            5.0 / 0.4 * (r * matched(1.0) + (1.0 - r) * matched(-1.0)) + 1e-4 * mean(&|i| (v[i] - reference[i]).powi(2))
        };
        vec![(0..3).map(row).sum::<f64>() / 3.0]
    };
    assert!((loss - of(&theta)[0]).abs() < 1e-5 * loss);
    check_gradient(&dv, &theta, &Tensor::from_slice(&Device::Cpu, &[1.0], &[1]), of);
}

#[test]
fn an_image_is_trained_at_nine_of_ten_levels_in_an_order_of_its_own() {
    let nft = nft(|_| ());
    let key = |purpose, image: usize, draw| crate::device::philox::Key {
        prompt: image as u32,
        step: draw,
        ..crate::device::philox::Key::new(1, purpose)
    };
    let updates = nft.updates(&Scored {
        advantages: &[1.0, -1.0],
        key: &key,
        steps: &[],
        log_probs: &[],
        gradient_norms: &[],
        forks: &[],
        groups: &[],
    });
    assert_eq!((updates.len(), updates[0].len(), nft.points_per_image()), (1, 18, 9));
    let times = |image: usize| -> Vec<f32> { updates[0].iter().filter(|p| p.image == image).map(|p| p.t).collect() };
    assert_ne!(times(0), times(1));
    let mut sorted = times(0);
    sorted.sort_by(f32::total_cmp);
    sorted.dedup();
    assert_eq!(sorted.len(), 9);
}
