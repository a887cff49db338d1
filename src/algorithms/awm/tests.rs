use super::super::testing::{Operands, check_golden, points};
use super::*;
use crate::device::{Device, Tensor};
use crate::ops::testing::{check_gradient, wide};

fn awm(change: impl FnOnce(&mut AwmKeys)) -> Awm {
    // The settings of the golden numbers.
    let mut keys = AwmKeys { kl_weight: 3e-3, ..AwmKeys::default() };
    change(&mut keys);
    Awm::new(&keys, &Schedule::with_shift(3.0), 14, 1024).unwrap()
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];
const ADVANTAGES: [f64; 4] = [1.0, -2.0, 0.0, 7.0];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let of = |awm: &Awm| Operands::golden().evaluate(awm, &points(&TIMES, &ADVANTAGES), 4);
    check_golden(of(&awm(|_| ())), [0.567931269, 0.00618387859, 0.00234598475, -0.00139236719]);
    let uniform = awm(|k| k.weighting = Weighting::Uniform);
    check_golden(of(&uniform), [0.567931269, 0.00858171462, 0.00669569878, -0.0350114236]);
    let huber = awm(|k| k.weighting = Weighting::Huber);
    check_golden(of(&huber), [0.567931269, 0.00538953302, 0.00146172122, 0.000278958868]);
}

#[test]
fn a_ratio_of_an_image_is_that_of_its_mean_log_probability() {
    let awm = awm(|k| (k.weighting, k.loss_type, k.num_timesteps) = (Weighting::T, LossType::SumFirst, 2));
    let mut points = points(&TIMES, &[1.0, 1.0, -2.0, -2.0]);
    for (i, point) in points.iter_mut().enumerate() {
        point.together = Some(i / 2);
    }
    let found = Operands::golden().evaluate(&awm, &points, 4);
    check_golden(found, [0.867931269, 0.00858171462, -0.00264938854, 0.00704140226]);
}

#[test]
fn off_policy_the_stored_log_probability_counts() {
    let awm = awm(|k| {
        (k.weighting, k.clip_low, k.clip_high, k.kl_form) = (Weighting::T2, 0.2, 0.2, KlForm::Elbo);
    });
    let mut points = points(&TIMES, &ADVANTAGES);
    for (point, old) in points.iter_mut().zip([-1.0, -0.5, -0.25, 0.0]) {
        point.log_prob_old = Some(old);
    }
    let found = Operands::golden().evaluate(&awm, &points, 4);
    check_golden(found, [0.627143411, 0.0051500719, -0.000306477171, 0.00152042285]);
}

/// §9.7: on policy the ratio is exactly 1, and the gradient is that of `−A·logp` and the anchors.
#[test]
fn t13_t14_gradient_matches_finite_differences_on_policy() {
    let (operands, times, advantages) = (Operands::random(3, 32), [0.9, 0.5, 0.1], [3.0, -1.0, 0.5]);
    for weighting in [Weighting::Uniform, Weighting::T, Weighting::T2, Weighting::Huber, Weighting::Ghuber] {
        let awm = awm(|k| k.weighting = weighting);
        let (_, dv) = operands.evaluate(&awm, &points(&times, &advantages), 3);
        let [theta, reference, old, noise, x0] =
            [&operands.theta, &operands.reference, &operands.old, &operands.noise, &operands.x0].map(wide);
        let of = |v: &[f64]| -> Vec<f64> {
            let row = |row: usize| {
                let mean = |f: &dyn Fn(usize) -> f64| (row * 32..(row + 1) * 32).map(f).sum::<f64>() / 32.0;
                let l = mean(&|i| (v[i] - noise[i] + x0[i]).powi(2));
                let anchors = 3e-3 * mean(&|i| (v[i] - reference[i]).powi(2)) + mean(&|i| (v[i] - old[i]).powi(2));
                anchors - advantages[row] / 5.0 * awm.log_prob(l, times[row].into()).0
            };
            vec![(0..3).map(row).sum::<f64>() / 3.0]
        };
        check_gradient(&dv, &theta, &Tensor::from_slice(&Device::Cpu, &[1.0], &[1]), of);
    }
}

/// §9.7: without an advantage, and all policies one, nothing is left.
#[test]
fn t6_zero_advantage_and_equal_policies_give_exactly_zero() {
    let mut operands = Operands::random(3, 32);
    (operands.theta, operands.old) = (operands.reference.clone(), operands.reference.clone());
    let (loss, dv) = operands.evaluate(&awm(|_| ()), &points(&[0.5; 3], &[0.0; 3]), 3);
    assert!(loss == 0.0 && wide(&dv).iter().all(|v| *v == 0.0));
}

/// §9.7: `ghuber` is `t` at p = 1, and twice `huber` at p = ½.
#[test]
fn weightings_agree_where_they_should() {
    let at = |change: fn(&mut AwmKeys)| awm(change).log_prob(0.37, 0.6);
    let ghuber_1 = at(|k| k.ghuber_power = 1.0);
    let t = at(|k| k.weighting = Weighting::T);
    assert!((ghuber_1.0 - t.0).abs() < 1e-12 && (ghuber_1.1 - t.1).abs() < 1e-12);
    let (half, huber) = (at(|k| k.ghuber_power = 0.5), at(|k| k.weighting = Weighting::Huber));
    assert!((half.0 - 2.0 * huber.0).abs() < 1e-12 && (half.1 - 2.0 * huber.1).abs() < 1e-12);
}
