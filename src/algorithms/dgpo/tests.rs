use super::super::testing::{Operands, bank, check_golden, epoch, evaluate, points, together};
use super::super::{Dpo, Operand};
use super::*;
use crate::config::method::{DpoKeys, Method};
use crate::device::{Device, Tensor};
use crate::ops::testing::{check_gradient, wide};

fn dgpo(change: impl FnOnce(&mut DgpoKeys)) -> Dgpo {
    let mut keys = DgpoKeys::default();
    change(&mut keys);
    Dgpo::new(&keys, &Schedule::with_shift(3.0), 10, 1024).unwrap()
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let points = together(points(&TIMES, &[1.0, -2.0, 0.0, 7.0]), 2);
    let check = |dgpo: Dgpo, want| check_golden(Operands::golden().evaluate(&dgpo, &points, 4), want);
    check(dgpo(|_| ()), [3.2302842, 0.00250132068, 0.000103934965, -0.191091914]);
    let old = dgpo(|k| (k.beta, k.reference, k.clip) = (1.0, GroupReference::Old, false));
    check(old, [2.50773538, 0.00949057673, 0.014278574, -0.160939481]);
}

/// The loss of one group with the weight of the group and the clipping as they are at `theta`, both constants (T14).
fn direct(v: &[f64], operands: &Operands, dgpo: &Dgpo, advantages: &[f64]) -> f64 {
    let (keys, rows) = (&dgpo.keys, advantages.len());
    let [theta, reference, old, noise, x0] =
        [&operands.theta, &operands.reference, &operands.old, &operands.noise, &operands.x0].map(wide);
    let per = v.len() / rows;
    let mean = |row: usize, f: &dyn Fn(usize) -> f64| (row * per..(row + 1) * per).map(f).sum::<f64>() / per as f64;
    let error = |v: &[f64], row: usize| mean(row, &|i| (v[i] - noise[i] + x0[i]).powi(2));
    let compared = if keys.reference == GroupReference::Old { &old } else { &reference };
    let better: f64 = (0..rows).map(|i| advantages[i] * (error(&theta, i) - error(compared, i))).sum();
    let weight = 1.0 / (1.0 + (-keys.beta / rows as f64 * better).exp());
    let row = |i: usize| {
        let ratio = (error(&old, i) - error(&theta, i)).exp();
        let clipped = if advantages[i] > 0.0 { ratio > 1.0 + keys.clip_high } else { ratio < 1.0 - keys.clip_low };
        let at = |clip: bool| if clip && clipped { theta.as_slice() } else { v };
        weight * advantages[i] * error(at(keys.clip), i)
            + keys.kl_weight * mean(i, &|k| (at(keys.clip_kl)[k] - reference[k]).powi(2))
    };
    (0..rows).map(row).sum::<f64>() / rows as f64
}

#[test]
fn t13_t14_gradient_matches_finite_differences_with_frozen_weights_and_clipping() {
    let mut operands = Operands::random(4, 32);
    // Near the lagged policy some ratios are inside the range and some are not.
    let step = operands.theta.to_host();
    let near: Vec<f32> = operands.old.to_host().iter().zip(&step).map(|(old, step)| old + 0.02 * step).collect();
    operands.theta = Tensor::from_slice(&Device::Cpu, &near, &[4, 32]);
    let advantages = [1.5, -0.5, 0.0, -1.0];
    let points = together(points(&[0.6; 4], &advantages), 4);
    for (clip, clip_kl, reference) in
        [(true, false, GroupReference::Base), (true, true, GroupReference::Old), (false, true, GroupReference::Base)]
    {
        let dgpo = dgpo(|k| {
            (k.beta, k.kl_weight, k.clip_low, k.clip_high) = (0.7, 0.3, 1e-3, 1e-3);
            (k.clip, k.clip_kl, k.reference) = (clip, clip_kl, reference);
        });
        let of = |operand| match operand {
            Operand::Theta => &operands.theta,
            Operand::Reference => &operands.reference,
            Operand::Old => &operands.old,
            Operand::Noise => &operands.noise,
            Operand::X0 => &operands.x0,
            _ => unreachable!("not compared with"),
        };
        let (loss, dv) = evaluate(&dgpo, &points, of, 4);
        assert!((1..4).contains(&loss.clipped), "{}", loss.clipped);
        let theta = wide(&operands.theta);
        assert!((loss.value - direct(&theta, &operands, &dgpo, &advantages)).abs() < 1e-5);
        let one = Tensor::from_slice(&Device::Cpu, &[1.0], &[1]);
        check_gradient(&dv, &theta, &one, |v| vec![direct(v, &operands, &dgpo, &advantages)]);
    }
}

/// §16.2: a group that is as good as under the reference has weight ½; without advantages nothing pulls.
#[test]
fn t6_equal_rewards_pull_nothing_and_a_group_at_its_reference_by_a_half() {
    let mut operands = Operands::random(2, 32);
    (operands.theta, operands.old) = (operands.reference.clone(), operands.reference.clone());
    let dgpo = dgpo(|_| ());
    let of = |advantages: &[f64]| operands.evaluate(&dgpo, &together(points(&[0.5; 2], advantages), 2), 2);
    let (loss, dv) = of(&[0.0; 2]);
    assert!(loss == 0.0 && wide(&dv).iter().all(|v| *v == 0.0));
    let advantages = [1.2, -0.7];
    let [theta, noise, x0] = [&operands.theta, &operands.noise, &operands.x0].map(wide);
    for (i, dv) in wide(&of(&advantages).1).into_iter().enumerate() {
        let want = 0.5 * advantages[i / 32] * (theta[i] - noise[i] + x0[i]) / 32.0;
        assert!((dv - want).abs() < 1e-6, "{i}: {dv} {want}");
    }
}

/// §18.1, 7: the gradient of a pair in DPO is β times that in DGPO with advantages ±1, DPO's mean being over pairs.
#[test]
fn a_pair_of_dpo_is_a_group_of_two_of_dgpo() {
    let operands = Operands::random(2, 32);
    let points = together(points(&[0.5; 2], &[1.0, -1.0]), 2);
    let dgpo = dgpo(|k| (k.beta, k.kl_weight, k.clip) = (3.0, 0.0, false));
    let keys = DpoKeys { beta: 3.0, ..DpoKeys::default() };
    let dpo = Dpo::new(&keys, Method::Dpo, &Schedule::with_shift(3.0), 40, 1024).unwrap();
    let [group, pair] = [wide(&operands.evaluate(&dgpo, &points, 2).1), wide(&operands.evaluate(&dpo, &points, 2).1)];
    let worst = group.iter().zip(&pair).map(|(g, p)| (3.0 * g - p).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst}");
}

/// §16.2: one noise for all members at all times of an epoch, and the same times; groups are shared out whole.
#[test]
fn a_group_shares_its_times_and_one_noise() {
    let dgpo = dgpo(|k| k.updates_per_epoch = 2);
    let groups = [0, 1, 0, 2, 1, 0];
    let updates = epoch(&dgpo, &[1.0; 6], &groups);
    assert_eq!(updates.iter().map(Vec::len).collect::<Vec<_>>(), [3 * 4, 3 * 4]);
    let images = |points: &[Point]| points.iter().map(|p| p.image).collect::<Vec<_>>();
    assert_eq!(images(&updates[0][..3]), [0, 2, 5]);
    assert_eq!(images(&updates[1][..2]), [1, 4]);
    for point in updates[0].iter() {
        assert_eq!(point.noise, updates[0][0].noise);
    }
    for part in updates[0].chunks(3) {
        assert!(part.iter().all(|p| (p.t, p.together) == (part[0].t, part[0].together)));
    }
    assert_ne!(updates[1][0].noise, updates[0][0].noise);
    // The third group has one image only.
    assert_eq!(updates[1][8..].iter().map(|p| p.image).collect::<Vec<_>>(), [3; 4]);
}

#[test]
fn the_lagged_policy_follows_by_its_decay_and_samples_after_200_steps() {
    let dgpo = dgpo(|_| ());
    assert_eq!([0, 200, 201].map(|n| dgpo.rollout(n)), [Slot::Theta, Slot::Theta, Slot::Old]);
    for (update, decay) in [(0, 0.0), (100, 0.1), (1000, 0.3)] {
        let mut bank = bank(&[Slot::Theta, Slot::Old]);
        let [theta, old] = [Slot::Theta, Slot::Old].map(|slot| wide(bank.numbers(slot)));
        dgpo.follow(&mut bank, update);
        let found = wide(bank.numbers(Slot::Old));
        let worst = (0..old.len()).map(|i| (found[i] - decay * old[i] - (1.0 - decay) * theta[i]).abs());
        assert!(worst.fold(0.0, f64::max) < 1e-6);
    }
}
