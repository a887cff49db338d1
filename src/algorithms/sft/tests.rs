use super::super::testing::{Operands, bank, check_golden, epoch, points};
use super::*;
use crate::device::{Device, Tensor};
use crate::ops::testing::{bits, check_gradient, wide};

fn sft(method: Method, change: impl FnOnce(&mut SftKeys)) -> Sft {
    let mut keys = SftKeys { updates_per_epoch: 39, ..SftKeys::default() };
    change(&mut keys);
    Sft::new(&keys, method, &Schedule::with_shift(3.0), 40, 1024).unwrap()
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let of =
        |advantages: &[f64]| Operands::golden().evaluate(&sft(Method::Sft, |_| ()), &points(&TIMES, advantages), 4);
    check_golden(of(&[1.0, 0.0, 1.0, 1.0]), [1.99130136, 0.0229968776, 0.0, -0.0382298417]);
    check_golden(of(&[0.5, -0.25, 2.0, 0.0]), [1.49330076, 0.0114984388, 0.00424776697, 0.0]);
}

#[test]
fn t13_gradient_matches_finite_differences() {
    let (operands, advantages) = (Operands::random(3, 32), [1.0, 0.3, -0.5]);
    let (_, dv) = operands.evaluate(&sft(Method::Rwr, |_| ()), &points(&[0.9, 0.5, 0.1], &advantages), 3);
    let [theta, noise, x0] = [&operands.theta, &operands.noise, &operands.x0].map(wide);
    let of = |v: &[f64]| -> Vec<f64> {
        let row = |row: usize| -> f64 {
            let squares = (row * 32..(row + 1) * 32).map(|i| (v[i] - noise[i] + x0[i]).powi(2));
            advantages[row] * squares.sum::<f64>() / 32.0
        };
        vec![(0..3).map(row).sum::<f64>() / 3.0]
    };
    check_gradient(&dv, &theta, &Tensor::from_slice(&Device::Cpu, &[1.0], &[1]), of);
}

/// §15.2.
#[test]
fn the_best_images_of_a_prompt_are_chosen_and_with_rwr_all_by_their_reward() {
    let (rewards, group) = ([0.3, 0.9, 0.9, 2.0, -1.0, 0.5, 0.5], ["a", "a", "a", "b", "b", "c", "c"]);
    let of = |sft: Sft| sft.advantages(&rewards, &group).values;
    assert_eq!(of(sft(Method::Sft, |_| ())), [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(of(sft(Method::Sft, |k| k.skip_equal_groups = false))[5..], [1.0, 1.0]);
    assert_eq!(of(sft(Method::Rwr, |_| ())), [0.3, 0.9, 0.9, 2.0, -1.0, 0.0, 0.0]);
}

/// All of an epoch's images that are alike teach nothing.
#[test]
fn t6_equal_rewards_give_no_points() {
    for method in [Method::Sft, Method::OnlineSft, Method::Rwr] {
        let sft = sft(method, |_| ());
        let advantages = sft.advantages(&[0.7; 6], &["a", "a", "a", "b", "b", "b"]);
        assert_eq!(advantages.zero_variance_groups, 2);
        assert!(epoch(&sft, &advantages.values, &[0, 0, 0, 1, 1, 1]).iter().all(Vec::is_empty));
    }
}

/// §15.3: every optimiser step sees all chosen images, at times and noise of its own.
#[test]
fn each_of_the_39_updates_draws_times_and_noise_anew() {
    let sft = sft(Method::Sft, |_| ());
    let updates = epoch(&sft, &[1.0, 0.0, 0.0, 1.0], &[0, 0, 1, 1]);
    assert_eq!((updates.len(), sft.points_per_image() * sft.chosen(24)), (39, 39));
    let mut streams = Vec::new();
    for update in &updates {
        assert_eq!(update.iter().map(|p| p.image).collect::<Vec<_>>(), [0, 3]);
        streams.extend(update.iter().map(|p| p.noise.words()));
    }
    streams.sort_unstable();
    streams.dedup();
    assert_eq!(streams.len(), 2 * 39);
    let times = |image: usize| updates.iter().map(|u| u[image].t.to_bits()).collect::<std::collections::BTreeSet<_>>();
    assert!(times(0).len() > 20 && times(0) != times(1));
}

/// What `method` does to the reference in the first optimiser steps: which of them make it the trained policy.
fn copies(method: Method, every: Option<u64>) -> Vec<u64> {
    let sft = sft(method, |k| k.ref_update_step = every);
    let is_copied = |update: &u64| {
        let mut bank = bank(&[Slot::Theta, Slot::Reference]);
        let before = bits(bank.numbers(Slot::Reference));
        sft.follow(&mut bank, *update);
        let after = bits(bank.numbers(Slot::Reference));
        let copied = after == bits(bank.numbers(Slot::Theta));
        assert!(copied || after == before, "neither kept nor copied");
        copied
    };
    (0..100).filter(is_copied).collect()
}

#[test]
fn the_policy_that_samples_follows_online_and_never_otherwise() {
    assert_eq!(copies(Method::OnlineSft, None), [39, 79]);
    assert_eq!(copies(Method::OnlineSft, Some(30)), [29, 59, 89]);
    assert_eq!(copies(Method::Rwr, Some(50)), [49, 99]);
    assert!(copies(Method::Sft, None).is_empty() && copies(Method::Rwr, None).is_empty());
}
