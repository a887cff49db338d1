use super::super::testing::{Operands, bank, check_golden, check_golden_of, epoch, points, together};
use super::*;
use crate::device::{Device, Tensor};
use crate::ops::testing::{bits, check_gradient, wide};

fn crd(change: impl FnOnce(&mut CrdKeys)) -> Crd {
    // Most golden numbers are without.
    let mut keys = CrdKeys { adaptive_kl: false, ..CrdKeys::default() };
    change(&mut keys);
    Crd::new(&keys, &Schedule::with_shift(3.0), 10, 1024).unwrap()
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let points = together(points(&TIMES, &[1.0, -2.0, 0.0, 7.0]), 2);
    let of = |crd: Crd| Operands::golden().evaluate(&crd, &points, 4);
    check_golden(of(crd(|_| ())), [0.386242595, 0.0140434135, 0.0286472402, -0.0722681242]);
    let bce = of(crd(|k| k.loss = CrdLoss::Bce));
    check_golden_of(bce, [3.63450936, -0.00716571003, 0.0126707423, -0.00434996234], 0.02);
    let softmax = of(crd(|k| (k.temperature, k.adaptive_kl) = (0.5, true)));
    check_golden(softmax, [0.359110843, 0.018114858, 0.0213790681, -0.0722681242]);
    let pools = of(crd(|k| k.temperature = 0.0));
    check_golden(pools, [0.391817294, 0.0122395066, 0.0300060948, -0.0627695336]);
}

/// T13 and T14: the adaptive weights and the means of the implicit reward are constants.
#[test]
fn t13_t14_gradient_matches_finite_differences_with_frozen_weights_and_means() {
    let (operands, advantages) = (Operands::random(3, 32), [2.0, -1.0, 0.0]);
    let points = together(points(&[0.6; 3], &advantages), 3);
    let [theta, reference, old, noise, x0] =
        [&operands.theta, &operands.reference, &operands.old, &operands.noise, &operands.x0].map(wide);
    let mean = |row: usize, f: &dyn Fn(usize) -> f64| (row * 32..(row + 1) * 32).map(f).sum::<f64>() / 32.0;
    for (loss, temperature, adaptive) in
        [(CrdLoss::Mse, -1.0, true), (CrdLoss::Bce, 0.5, true), (CrdLoss::Mse, 0.0, false)]
    {
        let crd = crd(|k| {
            (k.loss, k.temperature, k.adaptive, k.beta) = (loss, temperature, adaptive, 0.8);
        });
        let implicit = |v: &[f64], row: usize| {
            let part = |v: &[f64], at: &[f64]| {
                let weight = if adaptive { mean(row, &|i| (at[i] - noise[i] + x0[i]).abs()) } else { 1.0 };
                mean(row, &|i| (v[i] - noise[i] + x0[i]).powi(2)) / weight
            };
            part(&old, &old) - part(v, &theta)
        };
        let rewards: Vec<f64> = advantages.iter().map(|a| a / 10.0 + 0.5).collect();
        let direct = |v: &[f64]| {
            let centres = crd.centres(&rewards);
            let of = |row: usize| {
                let sides = centres.iter().map(|p| {
                    let middle: f64 = (0..3).map(|i| p[i] * implicit(&theta, i)).sum();
                    let reward: f64 = (0..3).map(|i| p[i] * rewards[i]).sum();
                    let (x, target) = (0.8 * (implicit(v, row) - middle), rewards[row] - reward);
                    match loss {
                        CrdLoss::Mse => (x - target).powi(2),
                        // Cross-entropy with logits, as PyTorch defines it.
                        CrdLoss::Bce => {
                            let [p, q] = [x, target].map(|x| 1.0 / (1.0 + (-x).exp()));
                            -q * p.ln() - (1.0 - q) * (1.0 - p).ln()
                        }
                    }
                });
                5.0 / 0.8 * sides.sum::<f64>() / centres.len() as f64
                    + 0.1 * mean(row, &|i| (v[i] - reference[i]).powi(2))
            };
            (0..3).map(of).sum::<f64>() / 3.0
        };
        let (value, dv) = operands.evaluate(&crd, &points, 3);
        assert!((value - direct(&theta)).abs() < 1e-5 * value, "{value} {}", direct(&theta));
        check_gradient(&dv, &theta, &Tensor::from_slice(&Device::Cpu, &[1.0], &[1]), |v| vec![direct(v)]);
    }
}

/// §16.3: where the policy is the lagged one the implicit reward is 0, and equal rewards ask for nothing else.
#[test]
fn t6_equal_rewards_give_exactly_zero_at_the_start() {
    let mut operands = Operands::random(3, 32);
    (operands.theta, operands.old) = (operands.reference.clone(), operands.reference.clone());
    for temperature in [-1.0, 0.0, 0.5] {
        let crd = crd(|k| (k.temperature, k.adaptive_kl) = (temperature, true));
        let (loss, dv) = operands.evaluate(&crd, &together(points(&[0.5; 3], &[0.0; 3]), 3), 3);
        assert!(loss == 0.0 && wide(&dv).iter().all(|v| *v == 0.0), "{temperature}: {loss}");
    }
}

/// §16.3: what all rewards of a group have in common has no effect.
#[test]
fn a_shift_of_a_group_s_rewards_changes_nothing() {
    let operands = Operands::random(2, 32);
    for temperature in [-1.0, 0.7] {
        let crd = crd(|k| k.temperature = temperature);
        let of = |shift: f64| operands.evaluate(&crd, &together(points(&[0.5; 2], &[1.0 + shift, -1.0 + shift]), 2), 2);
        let (a, b) = (of(0.0), of(1.5));
        assert!((a.0 - b.0).abs() < 1e-12 * a.0);
        assert!(wide(&a.1).iter().zip(wide(&b.1)).all(|(a, b)| (a - b).abs() < 1e-9));
    }
}

#[test]
fn the_weights_of_a_centre_sum_to_one_and_follow_the_temperature() {
    let rewards = [0.9, 0.5, 0.1];
    for temperature in [-1.0, 0.0, 0.2, 5.0] {
        for weights in crd(|k| k.temperature = temperature).centres(&rewards) {
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
    let [best, worst] = &crd(|k| k.temperature = 0.2).centres(&rewards)[..] else { panic!("two directions") };
    assert!((best[0] / best[2] - 4f64.exp()).abs() < 1e-9 && (worst[2] / worst[0] - 4f64.exp()).abs() < 1e-9);
    // As rewards are from 0 to 1, the pool of negative ones is empty and uniform.
    assert_eq!(crd(|k| k.temperature = 0.0).centres(&rewards)[1], [1.0 / 3.0; 3]);
}

/// §16.3: the same times for a group, and noise of each image's own.
#[test]
fn a_group_shares_its_times_and_no_noise() {
    let crd = crd(|_| ());
    let updates = epoch(&crd, &[1.0; 4], &[0, 0, 1, 1]);
    assert_eq!(updates.iter().map(Vec::len).collect::<Vec<_>>(), [2 * 20, 2 * 20]);
    let mut streams: Vec<_> = updates.iter().flatten().map(|p| p.noise.words()).collect();
    streams.sort_unstable();
    streams.dedup();
    assert_eq!(streams.len(), 80);
    assert!(updates[0].chunks(2).all(|pair| pair[0].t == pair[1].t && pair[0].together == pair[1].together));
}

/// Both lagged policies follow once an epoch, each by its own decay after the epoch's steps.
#[test]
fn both_lagged_policies_follow_once_an_epoch() {
    let crd = crd(|_| ());
    let mut bank = bank(&[Slot::Theta, Slot::Old, Slot::Sampling]);
    let [theta, old, sampling] = [Slot::Theta, Slot::Old, Slot::Sampling].map(|slot| wide(bank.numbers(slot)));
    let before = bits(bank.numbers(Slot::Old));
    crd.follow(&mut bank, 0);
    assert!(bits(bank.numbers(Slot::Old)) == before);
    crd.follow(&mut bank, 79);
    // 0.25 + 80·0.005 and (80 − 75)·0.0075.
    for (slot, was, decay) in [(Slot::Old, old, 0.65), (Slot::Sampling, sampling, 0.0375)] {
        let found = wide(bank.numbers(slot));
        let worst = (0..was.len()).map(|i| (found[i] - decay * was[i] - (1.0 - decay) * theta[i]).abs());
        assert!(worst.fold(0.0, f64::max) < 1e-6, "{slot:?}");
    }
}
