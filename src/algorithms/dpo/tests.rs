use super::super::testing::{Operands, bank, check_golden, check_golden_of, epoch, points, together};
use super::*;
use crate::device::{Device, Tensor};
use crate::ops::testing::{bits, check_gradient, wide};

fn dpo(method: Method, change: impl FnOnce(&mut DpoKeys)) -> Dpo {
    let mut keys = DpoKeys { updates_per_epoch: 39, ..DpoKeys::default() };
    change(&mut keys);
    Dpo::new(&keys, method, &Schedule::with_shift(3.0), 40, 1024).unwrap()
}

fn pairs(times: &[f32], advantages: &[f64]) -> Vec<Point> {
    together(points(times, advantages), 2)
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];
const WINS: [f64; 4] = [1.0, -1.0, 1.0, -1.0];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let of = |beta| Operands::golden().evaluate(&dpo(Method::Dpo, |k| k.beta = beta), &pairs(&TIMES, &WINS), 4);
    check_golden(of(2.0), [0.68669833, 0.0228664332, 0.01689469, 0.0379519969]);
    // Matching errors of a few units in f32, of which a hundred count.
    check_golden_of(of(100.0), [0.421799522, 0.83220097, 0.614865349, 1.24591092], 5.0);
}

/// `−ln σ(−½β·((e_θ^w − e_ref^w) − (e_θ^l − e_ref^l)))` of one pair, elementwise.
fn direct(v: &[f64], operands: &Operands, beta: f64) -> f64 {
    let [reference, noise, x0] = [&operands.reference, &operands.noise, &operands.x0].map(wide);
    let per = v.len() / 2;
    let error = |v: &[f64], row: usize| {
        (row * per..(row + 1) * per).map(|i| (v[i] - noise[i] + x0[i]).powi(2)).sum::<f64>() / per as f64
    };
    let excess = |row: usize| error(v, row) - error(&reference, row);
    (1.0 + (0.5 * beta * (excess(0) - excess(1))).exp()).ln()
}

/// T13 and T14: the reference is a constant.
#[test]
fn t13_t14_gradient_matches_finite_differences_with_a_frozen_reference() {
    let operands = Operands::random(2, 32);
    for beta in [0.5, 3.0] {
        let (loss, dv) = operands.evaluate(&dpo(Method::Dpo, |k| k.beta = beta), &pairs(&[0.6; 2], &WINS[..2]), 2);
        let theta = wide(&operands.theta);
        assert!((loss - direct(&theta, &operands, beta)).abs() < 1e-5 * loss.abs().max(1.0));
        let one = Tensor::from_slice(&Device::Cpu, &[1.0], &[1]);
        check_gradient(&dv, &theta, &one, |v| vec![direct(v, &operands, beta)]);
    }
}

/// T18: where the policy is its reference the loss is ln 2 whatever the images, and its slope over a matching error ±β/4; the
/// velocity's is that times `2·(v − y)/D`.
#[test]
fn t18_at_the_start_the_loss_is_ln_2_and_pulls_by_a_quarter_of_beta() {
    let mut operands = Operands::random(2, 32);
    operands.theta = operands.reference.clone();
    let dpo = dpo(Method::Dpo, |k| k.beta = 100.0);
    let [noise, x0, theta] = [&operands.noise, &operands.x0, &operands.theta].map(wide);
    let check = |advantages: [f64; 2]| {
        let (loss, dv) = operands.evaluate(&dpo, &pairs(&[0.4; 2], &advantages), 2);
        assert!((loss - 2f64.ln()).abs() < 1e-12, "{loss}");
        for (i, dv) in wide(&dv).into_iter().enumerate() {
            let slope = advantages[i / 32] * 25.0;
            let want = slope * 2.0 * (theta[i] - noise[i] + x0[i]) / 32.0;
            assert!((dv - want).abs() < 1e-5 * want.abs().max(1.0), "{i}: {dv} {want}");
        }
        wide(&dv)
    };
    let (first, swapped) = (check([1.0, -1.0]), check([-1.0, 1.0]));
    assert!(first.iter().zip(&swapped).all(|(a, b)| *a == -b), "swapped, the gradient turns");
}

/// T18: bit for bit at multiples of ref_update_step, counted in optimiser steps, and never in the offline method.
#[test]
fn t18_the_reference_is_copied_at_multiples_only() {
    for (method, every) in [(Method::OnlineDpo, 7), (Method::Dpo, 0)] {
        let dpo = dpo(method, |k| k.ref_update_step = (every > 0).then_some(every));
        let mut bank = bank(&[Slot::Theta, Slot::Reference]);
        let mut kept = bits(bank.numbers(Slot::Reference));
        for update in 0..30 {
            dpo.follow(&mut bank, update);
            if every > 0 && (update + 1) % every == 0 {
                kept = bits(bank.numbers(Slot::Theta));
            }
            assert!(bits(bank.numbers(Slot::Reference)) == kept, "{method:?} {update}");
            let moved = crate::ops::testing::random(&[bank.layout().len()], 100 + update);
            bank.set(Slot::Theta, moved);
        }
    }
    // Left out, every 40.
    assert_eq!(reference_follows(Method::OnlineDpo, None), Some(40));
}

/// §15.2: the first of the best and of the worst; where all are equal the second wins over the first, if it is to.
#[test]
fn the_best_and_the_worst_image_of_a_prompt_are_a_pair() {
    let (rewards, group) = ([0.3, 0.9, 0.1, 0.9, 0.1, 0.5, 0.5, 0.5], ["a", "a", "a", "a", "a", "b", "b", "b"]);
    let of = |skip| dpo(Method::Dpo, |k| k.skip_equal_groups = skip).advantages(&rewards, &group);
    assert_eq!(of(true).values, [0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(of(false).values[5..], [-1.0, 1.0, 0.0]);
    assert_eq!(of(true).zero_variance_groups, 1);
}

#[test]
fn what_is_reported_of_pairs_is_how_the_errors_have_grown() {
    let operands = Operands::random(4, 32);
    let dpo = dpo(Method::Dpo, |k| k.beta = 2.0);
    let points = pairs(&[0.6; 4], &[1.0, -1.0, -1.0, 1.0]);
    let products = crate::algorithms::compare(&dpo, &points, |of| operands.operand(of));
    let loss = dpo.loss(&points, &products, 4);
    let [theta, reference, noise, x0] = [&operands.theta, &operands.reference, &operands.noise, &operands.x0].map(wide);
    let error = |v: &[f64], row: usize| {
        (row * 32..(row + 1) * 32).map(|i| (v[i] - noise[i] + x0[i]).powi(2)).sum::<f64>() / 32.0
    };
    let growth: Vec<f64> = (0..4).map(|row| error(&theta, row) - error(&reference, row)).collect();
    let close = |found: f64, want: f64| assert!((found - want).abs() < 1e-5 * want.abs().max(1.0), "{found} {want}");
    close(loss.pairs.winners, growth[0] + growth[3]);
    close(loss.pairs.losers, growth[1] + growth[2]);
    let told_apart = usize::from(growth[0] < growth[1]) + usize::from(growth[3] < growth[2]);
    assert_eq!((loss.pairs.count, loss.pairs.told_apart), (2, told_apart));
    // Of the passes that a divided batch has, the first alone reports them.
    let parts = loss.clone().split([2, 2]);
    assert_eq!((parts[0].pairs, parts[1].pairs), (loss.pairs, Pairs::default()));
}

#[test]
fn t6_equal_rewards_give_no_points() {
    let dpo = dpo(Method::Dpo, |_| ());
    let advantages = dpo.advantages(&[0.5; 4], &["a", "a", "b", "b"]);
    assert!(epoch(&dpo, &advantages.values, &[0, 0, 1, 1]).iter().all(Vec::is_empty));
}

/// §15.3: the two images of a pair are compared at one time with one noise, anew in every update.
#[test]
fn a_pair_shares_its_time_and_its_noise() {
    let dpo = dpo(Method::Dpo, |_| ());
    let updates = epoch(&dpo, &[0.0, -1.0, 1.0, 1.0, 0.0, -1.0], &[0, 0, 0, 1, 1, 1]);
    assert_eq!((updates.len(), updates[0].len(), dpo.chosen(24)), (39, 4, 2));
    let mut seen = std::collections::BTreeSet::new();
    for update in &updates {
        assert_eq!(update.iter().map(|p| p.image).collect::<Vec<_>>(), [2, 1, 3, 5]);
        for pair in update.chunks(2) {
            assert_eq!((pair[0].t, pair[0].noise, pair[0].together), (pair[1].t, pair[1].noise, pair[1].together));
            assert!(seen.insert(pair[0].noise.words()) && pair[0].together.is_some());
        }
        assert_ne!(update[0].together, update[2].together);
    }
}
