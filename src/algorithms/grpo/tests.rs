use std::collections::BTreeMap;

use super::super::check_ratio_noise;
use super::super::testing::{Close, check_golden, evaluate, points};
use super::*;
use crate::config::method::KlDenominator;
use crate::config::raw::Prompts;
use crate::ops::step::{self, Inputs};
use crate::ops::testing::wide;

fn config(method: Method, sampler: Kind, noise_level: f64) -> TrainConfig {
    let prompts = Prompts { train: "t".into(), eval: "e".into(), max_sequence_length: 8 };
    let mut config = TrainConfig::minimal("m".into(), prompts, BTreeMap::new());
    config.algorithm = method;
    config.rollout.num_inference_steps = 10;
    (config.rollout.sampler, config.rollout.noise_level, config.rollout.guidance_scale) = (sampler, noise_level, 1.0);
    config
}

fn grpo(method: Method, sampler: Kind, noise_level: f64, change: impl FnOnce(&mut GrpoKeys)) -> Grpo {
    // The settings of the golden numbers.
    let mut keys = GrpoKeys { clip_low: 0.02, clip_high: 0.03, kl_weight: 0.0, ..GrpoKeys::default() };
    change(&mut keys);
    Grpo::new(&keys, &config(method, sampler, noise_level), &Schedule::with_shift(3.0), 1024).unwrap()
}

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    use Method::{Cps, FlowGrpo, GrpoGuard};
    let check = |grpo: Grpo, want| check_golden(Close::of(&grpo.steps).evaluate(&grpo), want);
    let flow = |change: fn(&mut GrpoKeys)| grpo(FlowGrpo, Kind::Flow, 0.7, change);
    check(flow(|_| ()), [-0.916031892, 0.0, -0.00143203756, 0.200599237]);
    let kl = |change: fn(&mut GrpoKeys)| {
        grpo(FlowGrpo, Kind::Flow, 0.7, |k| {
            k.kl_weight = 0.04;
            change(k);
        })
    };
    check(kl(|_| ()), [-0.911045515, -2.79779679e-07, -0.0014269743, 0.201187403]);
    let step_std = kl(|k| k.kl_denominator = KlDenominator::StepStd);
    check(step_std, [-0.896577061, -7.01717862e-06, -0.00135683026, 0.202784749]);
    check(kl(|k| k.kl_type = KlType::X), [-0.913780476, -6.87683504e-06, -0.00140213149, 0.20082123]);
    check(kl(|k| k.kl_type = KlType::V), [-0.850466021, -0.0043259484, 0.00282473351, 0.202576696]);
    let dance = grpo(FlowGrpo, Kind::Dance, 0.5, |_| ());
    check(dance, [-0.911900579, 0.0, -0.00442906138, 0.185317945]);
    let cps = grpo(Cps, Kind::Cps, 0.8, |_| ());
    check(cps, [-0.891933889, 0.0, -0.00166411686, 0.000460356966]);
    let guard = |balance| grpo(GrpoGuard, Kind::Flow, 0.7, |k| k.guard_grad_balance = balance);
    check(guard(GuardGradBalance::InverseDt), [-3.61960551, 0.0, -0.00903969741, 0.180813263]);
    check(guard(GuardGradBalance::None), [-0.987381685, 0.0, -0.000608588971, 0.0486605037]);
}

/// §5.8: what the trained policy says of a step that it took itself is what was recorded, bit for bit: the ratio is 1.
#[test]
fn t4_t5_on_policy_every_ratio_is_exactly_one() {
    for (method, kind) in [(Method::FlowGrpo, Kind::Flow), (Method::Cps, Kind::Cps), (Method::GrpoGuard, Kind::Flow)] {
        let grpo = grpo(method, kind, 0.7, |_| ());
        let random = |seed| crate::ops::testing::random(&[4, 64], seed);
        let (x, velocity) = (random(1), random(2));
        for step in 0..9 {
            let keys: Vec<Key> = (0..4).map(|i| Key { prompt: i, ..Key::new(1, Purpose::SamplerNoise) }).collect();
            let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &keys };
            let row = grpo.steps.at(step).row();
            let next = step::forward(inputs, row);
            let mean_old = step::forward(inputs, step::Row { s: 0.0, ..row });
            let log_probs = crate::rollout::sample::log_probs(&x, &velocity, &next, &grpo.steps.at(step));
            let mut points = points(&[0.0; 4], &[1.0, -1.0, 0.5, 2.0]);
            for (point, log_prob) in points.iter_mut().zip(log_probs) {
                (point.step, point.log_prob_old) = (step, Some(log_prob));
            }
            let of = |operand| match operand {
                Operand::X => &x,
                Operand::Next => &next,
                Operand::Theta => &velocity,
                Operand::MeanOld => &mean_old,
                _ => unreachable!("not compared with"),
            };
            assert_eq!(evaluate(&grpo, &points, of, 4).0.ratios, [1.0; 4], "{method:?} step {step}");
        }
    }
}

#[test]
fn a_window_is_anywhere_in_its_range_and_the_same_for_an_epoch() {
    let fast = grpo(Method::FlowGrpoFast, Kind::Flow, 0.7, |k| k.window_size = 2);
    let mut counts = BTreeMap::new();
    for epoch in 0..4000 {
        let window = fast.window(7, epoch).unwrap();
        assert_eq!((window.noisy.clone(), window.trained.len()), (window.trained.clone(), 2));
        *counts.entry(window.noisy[0]).or_insert(0) += 1;
    }
    assert_eq!(fast.window(7, 3), fast.window(7, 3));
    // Four starts; four standard deviations of a count.
    assert_eq!(counts.len(), 4);
    assert!(counts.values().all(|n: &i32| (n - 1000).abs() < 110), "{counts:?}");
    let all = grpo(Method::FlowGrpo, Kind::Flow, 0.7, |_| ());
    assert_eq!(all.window(7, 3), Some(Window::new(0..10, 0..9)));
}

/// §5.8: images that are as good as the others of their prompt are left out.
#[test]
fn images_without_an_advantage_are_not_trained_on() {
    let grpo = grpo(Method::FlowGrpo, Kind::Flow, 0.7, |_| ());
    let key = |purpose, image: usize, draw| Key { prompt: image as u32, step: draw, ..Key::new(1, purpose) };
    let log_probs: Vec<f64> = (0..27).map(f64::from).collect();
    let epoch = |advantages| Scored {
        advantages,
        key: &key,
        steps: &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        log_probs: &log_probs,
        gradient_norms: &[],
        forks: &[],
        groups: &[],
    };
    let updates = grpo.updates(&epoch(&[1.0, 0.0, -1.0]));
    assert_eq!(updates.iter().map(Vec::len).collect::<Vec<_>>(), [9, 9]);
    let mut images: Vec<usize> = updates.iter().map(|points| points[0].image).collect();
    images.sort_unstable();
    assert_eq!(images, [0, 2]);
    for point in updates.iter().flatten() {
        assert_eq!(point.log_prob_old, Some((point.step * 3 + point.image) as f64));
    }
    assert!(grpo.updates(&epoch(&[0.0; 3])).iter().all(Vec::is_empty));
}

#[test]
fn a_sampler_that_does_not_fit_is_refused() {
    let error = |method, sampler, noise_level| {
        let keys = GrpoKeys::default();
        let made = Grpo::new(&keys, &config(method, sampler, noise_level), &Schedule::with_shift(3.0), 1024);
        format!("{:#}", made.err().unwrap())
    };
    let e = error(Method::FlowGrpo, Kind::Euler, 0.0);
    assert_eq!(e, "rollout.sampler is 'euler', expected flow or cps or dance for 'flow_grpo'");
    assert!(error(Method::GrpoGuard, Kind::Cps, 0.7).contains("expected flow for 'grpo_guard'"));
    assert!(error(Method::Cps, Kind::Cps, 0.0).contains("has nothing to compare"));
}

#[test]
fn a_clip_range_below_what_an_unchanged_policys_ratios_differ_by_is_refused_with_both_numbers() {
    let grpo = grpo(Method::FlowGrpo, Kind::Flow, 0.7, |keys| keys.clip_low = 1e-5);
    for noise in [0.0, 9e-6] {
        check_ratio_noise(&grpo, noise).unwrap();
    }
    let e = check_ratio_noise(&grpo, 3.2e-4).unwrap_err().to_string();
    assert!(e.starts_with("flow_grpo.clip_low and clip_high: ratios are clipped at 1e-5 from 1"), "{e}");
    assert!(e.contains("are already 3.2e-4 from it"), "{e}");
}

/// §8: the logarithm of the guard's ratio is the mean of `ε·Δμ`, with the noise `ε` that was drawn: of mean zero over that,
/// where the plain ratio's is below by `‖Δμ‖²/2s²`.
#[test]
fn t20_the_guards_log_ratio_is_the_mean_of_the_noise_times_the_change_of_the_mean() {
    let grpo = grpo(Method::GrpoGuard, Kind::Flow, 0.7, |_| ());
    let close = Close::of(&grpo.steps);
    let [x, noise, theta, mean_old] = [&close.x, &close.noise, &close.theta, &close.mean_old].map(wide);
    for (i, point) in close.points.iter().enumerate() {
        let Step { a, b, s, .. } = grpo.steps.at(point.step);
        let row = i * 8..(i + 1) * 8;
        let mean = |f: &dyn Fn(usize) -> f64| row.clone().map(f).sum::<f64>() / 8.0;
        let change = |j: usize| a * x[j] + b * theta[j] - mean_old[j];
        let residual = mean(&|j| (change(j) - s * noise[j]).powi(2));
        let mut gram = [[0.0; 4]; 4];
        (gram[0][0], gram[1][1]) = (residual, mean(&|j| change(j).powi(2)));
        let exact = Point {
            log_prob_old: Some(grpo.steps.log_prob(point.step).of(mean(&|j| (s * noise[j]).powi(2)))),
            ..*point
        };
        let want = mean(&|j| noise[j] * change(j));
        // Operands are in f32.
        assert!((grpo.log_ratio(&exact, &gram) - want).abs() < 1e-5 * want.abs().max(1.0), "{i}");
    }
}

/// §2.8.
#[test]
fn advantages_are_in_the_deviation_of_all_rewards_or_of_the_group_s() {
    let advantages = |std| {
        let grpo = grpo(Method::FlowGrpo, Kind::Flow, 0.7, |k| k.std = std);
        grpo.advantages(&[0.0, 2.0, 0.0, 6.0], &["a", "a", "b", "b"]).values
    };
    let group = advantages(Std::Group);
    assert!((group[1] - group[3]).abs() < 1e-3 && (group[1] - 1.0).abs() < 1e-3);
    assert!((advantages(Std::Global)[3] / advantages(Std::Global)[1] - 3.0).abs() < 1e-12);
}

#[test]
fn scattered_steps_are_any_of_the_range_in_their_order_and_the_same_for_an_epoch() {
    let fast = grpo(Method::FlowGrpoFast, Kind::Flow, 0.7, |k| {
        (k.window_size, k.window_range, k.window_place) = (2, [1, 6], WindowPlace::Scattered);
    });
    let mut seen = std::collections::BTreeSet::new();
    for epoch in 1..=200 {
        let window = fast.window(7, epoch).unwrap();
        assert_eq!(Some(&window), fast.window(7, epoch).as_ref());
        assert!(window.noisy == window.trained && window.noisy[0] < window.noisy[1]);
        seen.insert(window.noisy);
    }
    // All ten pairs of steps 1 to 5.
    assert_eq!((seen.len(), seen.first(), seen.last()), (10, Some(&vec![1, 2]), Some(&vec![4, 5])));
}

#[test]
fn a_progressive_window_goes_through_its_range_and_begins_again() {
    let fast = grpo(Method::FlowGrpoFast, Kind::Flow, 0.7, |k| {
        (k.window_size, k.window_range) = (2, [1, 5]);
        (k.window_place, k.window_interval) = (WindowPlace::Progressive, 3);
    });
    let starts: Vec<usize> = (1..=12).map(|epoch| fast.window(7, epoch).unwrap().noisy[0]).collect();
    assert_eq!(starts, [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1]);
}
