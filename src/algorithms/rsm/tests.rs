use std::collections::BTreeMap;

use super::super::Grpo;
use super::super::testing::{Close, check_golden, evaluate, points};
use super::*;
use crate::config::method::{GrpoKeys, Method, Profile, RsmSampler};
use crate::config::raw::Prompts;
use crate::device::philox::Key;
use crate::device::{Device, Tensor};
use crate::ops::step::{self, Inputs};
use crate::ops::testing::{bits, check_gradient, random, wide};
use crate::rollout::branch;

use Reweight::{Base, Fairclip, Fairclip2, Guard, Pcpo, Tempflow};

const ALL: [Reweight; 6] = [Base, Pcpo, Tempflow, Guard, Fairclip, Fairclip2];
const RATIOS: [Reweight; 5] = [Base, Pcpo, Tempflow, Guard, Fairclip];

const NINE: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

fn config() -> TrainConfig {
    let prompts = Prompts { train: "t".into(), eval: "e".into(), max_sequence_length: 8 };
    let mut config = TrainConfig::minimal("m".into(), prompts, BTreeMap::new());
    config.algorithm = Method::Rsm;
    config.rollout.num_inference_steps = 10;
    (config.rollout.sampler, config.rollout.noise_level, config.rollout.guidance_scale) = (Kind::Flow, 0.7, 1.0);
    config
}

fn rsm_of(keys: &RsmKeys) -> Rsm {
    Rsm::new(keys, &config(), &Schedule::with_shift(3.0), 1024).unwrap()
}

/// With the settings of the golden numbers.
fn rsm(loss: RsmLoss, reweight: Reweight, change: impl FnOnce(&mut RsmKeys)) -> Rsm {
    let kl_denominator = crate::config::method::KlDenominator::StdDev;
    let mut keys = RsmKeys { loss, reweight, kl_denominator, ..RsmKeys::default() };
    change(&mut keys);
    rsm_of(&keys)
}

/// All steps have forks.
fn all_forks(keys: &mut RsmKeys) {
    keys.profile = Some(Profile::Counts(vec![6, 6, 8, 10, 6, 6, 6, 6, 6, 6]));
}

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let matching = |reweight, want| {
        let rsm = rsm(RsmLoss::Matching, reweight, |_| ());
        check_golden(Close::of(&rsm.steps).evaluate(&rsm), want);
    };
    matching(Base, [0.00957087726, -6.99449197e-08, -0.00216298018, 0.000882248007]);
    matching(Pcpo, [0.0106729816, -6.99449197e-08, -0.00343586643, 0.000882248007]);
    matching(Tempflow, [0.00957755827, -6.99449197e-08, -0.00217005252, 0.000882248007]);
    matching(Guard, [0.0222050084, -6.99449197e-08, -0.013602718, 0.000882248007]);
    matching(Fairclip, [0.0098730948, -6.99449197e-08, -0.00216298018, 0.000882248007]);
    matching(Fairclip2, [0.0234880486, -6.99449197e-08, -0.0143300101, 0.000882248007]);
    let ppo = |reweight, want| {
        let rsm = rsm(RsmLoss::Ppo, reweight, |keys| {
            all_forks(keys);
            keys.clip_range = 0.05;
        });
        check_golden(Close::of(&rsm.steps).evaluate(&rsm), want);
    };
    ppo(Guard, [-9.93444567, -3.1086631e-08, -0.00803494903, 0.267936853]);
    ppo(Pcpo, [-1.68972587, -3.1086631e-08, -0.00195916623, 0.23625342]);
}

/// What a policy that sampled sees of `step`: where it was, its velocity, where it went, the noise, and how probable that was.
struct Taken {
    x: Tensor,
    velocity: Tensor,
    next: Tensor,
    noise: Tensor,
    mean: Tensor,
    points: Vec<Point>,
}

impl Taken {
    fn at(rsm: &Rsm, step: usize, advantages: &[f64]) -> Self {
        let n = advantages.len();
        let (x, velocity) = (random(&[n, 64], 1), random(&[n, 64], 2));
        let keys: Vec<Key> = (0..n as u32).map(|i| Key { prompt: i, ..Key::new(1, Purpose::ForkNoise) }).collect();
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: None, history: [None; 2], noise: &keys };
        let (taken, row) = (rsm.steps.at(step), rsm.steps.at(step).row());
        let next = step::forward(inputs, row);
        let mean = step::forward(inputs, step::Row { s: 0.0, ..row });
        let log_probs = crate::rollout::sample::log_probs(&x, &velocity, &next, &taken);
        let mut points = points(&vec![0.0; n], advantages);
        for (point, log_prob) in points.iter_mut().zip(log_probs) {
            (point.step, point.log_prob_old) = (step, Some(log_prob));
        }
        rsm.weigh(&mut points);
        let noise = crate::ops::noise::normal(&Device::Cpu, &keys, &[n, 64]);
        Self { x, velocity, next, noise, mean, points }
    }

    fn evaluate(&self, algorithm: &dyn Algorithm, theta: &Tensor) -> (Loss, Tensor) {
        let of = |operand| match operand {
            Operand::X => &self.x,
            Operand::Next => &self.next,
            Operand::Noise => &self.noise,
            Operand::Theta => theta,
            Operand::VelocityOld | Operand::Reference => &self.velocity,
            Operand::MeanOld => &self.mean,
            _ => unreachable!("not compared with"),
        };
        evaluate(algorithm, &self.points, of, self.points.len())
    }
}

/// A velocity near `v`.
fn near(v: &Tensor, by: f32) -> Tensor {
    let other = random(v.shape(), 9).to_host();
    let moved: Vec<f32> = v.to_host().iter().zip(other).map(|(v, o)| v + by * o).collect();
    Tensor::from_slice(&Device::Cpu, &moved, v.shape())
}

/// T4: on policy every ratio is exactly 1, and the hinge is `c·|A|`.
#[test]
fn t4_on_policy_every_ratio_is_exactly_one() {
    let advantages = [1.0, -2.0, 0.5, 7.0];
    for step in 0..9 {
        for reweight in ALL {
            let rsm = rsm(RsmLoss::Matching, reweight, all_forks);
            let taken = Taken::at(&rsm, step, &advantages);
            let (found, _) = taken.evaluate(&rsm, &taken.velocity);
            assert_eq!(found.ratios, [1.0; 4], "{reweight:?} step {step}");
            let post = weights::matching(reweight, rsm.steps.at(step), rsm.steps.length(step)).post;
            let hinge = 1e-4 * (1.0 + 2.0 + 0.5 + 5.0) / 4.0 * post * rsm.balance(step).unwrap();
            assert!((found.value - hinge).abs() < 1e-12 * hinge, "{reweight:?} step {step}");
        }
        for reweight in RATIOS {
            let rsm = rsm(RsmLoss::Ppo, reweight, all_forks);
            let taken = Taken::at(&rsm, step, &advantages);
            assert_eq!(taken.evaluate(&rsm, &taken.velocity).0.ratios, [1.0; 4], "{reweight:?} step {step}");
        }
    }
}

/// T5: the samples after a step are what its velocity, its noise drawn again and the step's numbers make, bit for bit, and as
/// probable as recorded.
#[test]
fn t5_the_recorded_log_probability_follows_from_what_is_stored() {
    let rsm = rsm(RsmLoss::Ppo, Base, all_forks);
    for step in 0..9 {
        let taken = Taken::at(&rsm, step, &[1.0, -1.0]);
        let s = rsm.steps.at(step).row().s;
        let again: Vec<f32> =
            taken.mean.to_host().iter().zip(taken.noise.to_host()).map(|(mean, noise)| mean + s * noise).collect();
        assert_eq!(again, taken.next.to_host(), "step {step}");
        let log_probs = crate::rollout::sample::log_probs(&taken.x, &taken.velocity, &taken.next, &rsm.steps.at(step));
        assert_eq!(log_probs, taken.points.iter().map(|p| p.log_prob_old.unwrap()).collect::<Vec<_>>());
    }
}

/// T6: without a difference in reward nothing but the anchor is left, which is zero where policy and reference agree.
#[test]
fn t6_zero_advantage_and_theta_equal_to_reference_give_exactly_zero() {
    for loss in [RsmLoss::Matching, RsmLoss::Ppo] {
        let rsm = rsm(loss, Base, all_forks);
        let taken = Taken::at(&rsm, 2, &[0.0; 3]);
        let (found, dv) = taken.evaluate(&rsm, &taken.velocity);
        assert!(found.value == 0.0 && wide(&dv).iter().all(|v| *v == 0.0), "{loss:?}");
    }
}

/// T13, T14: the gradient is that of the loss in the trained velocity alone, both where the hinge is open and where it is not.
#[test]
fn t13_t14_gradients_match_finite_differences() {
    let advantages = [0.5, -1.0, 1.5];
    let one = Tensor::from_slice(&Device::Cpu, &[1.0], &[1]);
    let check = |rsm: &Rsm, step: usize| {
        let taken = Taken::at(rsm, step, &advantages);
        let theta = near(&taken.velocity, 0.3);
        let (found, dv) = taken.evaluate(rsm, &theta);
        let (at, length) = (rsm.steps.at(step), rsm.steps.length(step));
        let [x, old, next, noise] = [&taken.x, &taken.velocity, &taken.next, &taken.noise].map(wide);
        let of = |v: &[f64]| -> Vec<f64> {
            let row = |i: usize| {
                let mean = |f: &dyn Fn(usize) -> f64| (i * 64..(i + 1) * 64).map(f).sum::<f64>() / 64.0;
                let (a, point) = (advantages[i], &taken.points[i]);
                let policy = match rsm.keys.loss {
                    RsmLoss::Matching => {
                        let Matching { w, second, pre, post } = weights::matching(rsm.keys.reweight, at, length);
                        let half = mean(&|j| 0.5 * (w * (v[j] - old[j])).powi(2));
                        let cross = mean(&|j| w * (v[j] - old[j]) * noise[j]);
                        (rsm.keys.clip_range * a.abs() + a * pre * (second * half + cross)).max(0.0) * post
                    }
                    RsmLoss::Ppo => {
                        let Ratio { exponent, post } = weights::ratio(rsm.keys.reweight, at, length);
                        let mu = |j: usize| at.a * x[j] + at.b * v[j];
                        let residual = mean(&|j| (next[j] - mu(j)).powi(2));
                        let mut u = rsm.steps.log_prob(step).of(residual) - point.log_prob_old.unwrap();
                        if rsm.is_guard() {
                            u += mean(&|j| (at.b * (v[j] - old[j])).powi(2)) / (2.0 * at.s * at.s);
                        }
                        let (ratio, c) = ((exponent * u).exp(), rsm.keys.clip_range);
                        (-a * ratio).max(-a * ratio.clamp(1.0 - c, 1.0 + c)) * post
                    }
                };
                let variance = rsm.steps.variance(step, rsm.keys.kl_denominator);
                let kl = mean(&|j| (at.b * (v[j] - old[j])).powi(2)) / (2.0 * variance);
                point.share.policy * policy + rsm.keys.kl_weight * point.share.anchor * kl
            };
            vec![(0..3).map(row).sum()]
        };
        let wanted = of(&wide(&theta))[0];
        // The engine's differences are f32; tempflow's terms are of size 1, and sums of 64 of them cancel.
        assert!((found.value - wanted).abs() < 1e-5 * wanted.abs().max(1e-2), "{} {wanted}", found.value);
        check_gradient(&dv, &wide(&theta), &one, of);
    };
    for step in [1, 6] {
        // An open hinge and a closed one, an open ratio and a clipped one.
        for clip_range in [1e-4, 0.5] {
            for reweight in ALL {
                check(
                    &rsm(RsmLoss::Matching, reweight, |keys| {
                        all_forks(keys);
                        keys.clip_range = clip_range;
                    }),
                    step,
                );
            }
            for reweight in RATIOS {
                check(
                    &rsm(RsmLoss::Ppo, reweight, |keys| {
                        all_forks(keys);
                        keys.clip_range = clip_range;
                    }),
                    step,
                );
            }
        }
    }
}

/// T17: `T1 + T2 = −(logp_θ − logp_old)`.
#[test]
fn t17_the_matching_terms_are_the_log_ratio() {
    let (matching, ppo) = (rsm(RsmLoss::Matching, Base, all_forks), rsm(RsmLoss::Ppo, Base, all_forks));
    for step in 0..9 {
        let taken = Taken::at(&matching, step, &[1.0, -1.0, 0.5, 2.0]);
        let theta = near(&taken.velocity, 0.2);
        let [a, b] = [&matching, &ppo].map(|rsm| taken.evaluate(rsm, &theta).0.ratios);
        for (a, b) in a.iter().zip(&b) {
            assert!((a.ln() - b.ln()).abs() < 1e-5, "step {step}: {a} {b}");
            assert!(a.ln().abs() > 1e-4);
        }
    }
}

/// T17: once the log-ratio has gone `c` the way of the advantage, loss and gradient are zero, and not before.
#[test]
fn t17_the_hinge_is_zero_beyond_its_clip_range() {
    let wide_open = |reweight, clip_range| {
        rsm(RsmLoss::Matching, reweight, |keys| {
            all_forks(keys);
            (keys.clip_range, keys.kl_weight) = (clip_range, 0.0);
        })
    };
    let step = 3;
    let open = wide_open(Base, 0.0);
    let taken = Taken::at(&open, step, &[2.0, -2.0]);
    // Against the noise, which makes what was sampled less likely.
    let theta: Vec<f32> =
        taken.velocity.to_host().iter().zip(taken.noise.to_host()).map(|(v, e)| v + 0.1 * e).collect();
    let theta = Tensor::from_slice(&Device::Cpu, &theta, &[2, 64]);
    let moved: Vec<f64> = taken.evaluate(&open, &theta).0.ratios.iter().map(|r| r.ln().abs()).collect();
    for (clip_range, is_open) in [(0.99 * moved[1], [true, false]), (1.01 * moved[1], [true, true])] {
        let rsm = wide_open(Base, clip_range);
        let (found, dv) = taken.evaluate(&rsm, &theta);
        let rows = wide(&dv);
        let is_zero = |row: usize| rows[row * 64..(row + 1) * 64].iter().all(|v| *v == 0.0);
        assert_eq!([!is_zero(0), !is_zero(1)], is_open);
        assert_eq!(found.clipped, usize::from(!is_open[1]));
    }
    // fairclip looks at the log-ratio times s²: the same range is reached later.
    let s = open.steps.at(step).s;
    let clipped = |part: f64| taken.evaluate(&wide_open(Fairclip, part * moved[1] * s * s), &theta).0.clipped;
    assert_eq!([0.99, 1.01].map(clipped), [1, 0]);
}

/// §10.8: where the policy is the one that sampled, the slope of `base` is GRPO's.
#[test]
fn at_the_old_policy_the_gradient_is_that_of_grpo() {
    let no_kl = |keys: &mut RsmKeys| {
        (keys.sampler, keys.kl_weight) = (RsmSampler::Default, 0.0);
    };
    let mut config = config();
    config.algorithm = Method::FlowGrpo;
    let keys = GrpoKeys { kl_weight: 0.0, ..GrpoKeys::default() };
    let grpo = Grpo::new(&keys, &config, &Schedule::with_shift(3.0), 1024).unwrap();
    for loss in [RsmLoss::Matching, RsmLoss::Ppo] {
        let rsm = rsm(loss, Base, no_kl);
        for step in 0..9 {
            let taken = Taken::at(&rsm, step, &[1.0, -2.0, 7.0]);
            let [ours, theirs] =
                [&rsm as &dyn Algorithm, &grpo].map(|algorithm| wide(&taken.evaluate(algorithm, &taken.velocity).1));
            for (a, b) in ours.iter().zip(&theirs) {
                // One takes the noise from its key, the other from f32 samples about ten times its size at small steps.
                assert!((a - b).abs() < 1e-5 * b.abs().max(1e-2), "{loss:?} step {step}: {a} {b}");
            }
        }
    }
}

/// What an epoch's points are made from, for `forks` whose recorded log-probabilities are their numbers.
fn epoch<'a>(
    advantages: &'a [f64],
    log_probs: &'a [f64],
    forks: &'a [branch::Fork],
    key: &'a dyn Fn(Purpose, usize, u32) -> Key,
) -> Scored<'a> {
    Scored { advantages, key, steps: &NINE, log_probs, forks, groups: &[], gradient_norms: &[] }
}

/// T17: every fork is a point at its step with its own noise; those of a group of one have no advantage and count for nothing;
/// anchors stand at the steps without forks.
#[test]
fn t17_forks_become_points_and_steps_without_them_anchors() {
    let rsm = rsm(RsmLoss::Ppo, Base, |keys| {
        keys.profile = Some(Profile::Counts(vec![2, 0, 1, 3, 0, 0, 0, 0, 0, 6]));
    });
    let forks = branch::forks(rsm.forks(), 2);
    assert_eq!((forks.len(), rsm.each(2)), (12, Each { images: 12, points: 24 }));
    assert_eq!(rsm.window(1, 1), Some(Window::new([], 0..9)));
    let rewards: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7)).collect();
    let names: Vec<String> = forks.iter().map(branch::Fork::group).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let advantages = rsm.advantages(&rewards, &names).values;
    for (i, fork) in forks.iter().enumerate() {
        let members = || forks.iter().zip(&advantages).filter(|(f, _)| (f.trunk, f.step) == (fork.trunk, fork.step));
        assert!(members().map(|(_, a)| a).sum::<f64>().abs() < 1e-12);
        assert!(fork.step != 2 || advantages[i] == 0.0, "one fork alone");
    }
    let log_probs: Vec<f64> = (0..12).map(f64::from).collect();
    let key =
        |purpose, image: usize, draw| Key { prompt: forks[image].trunk as u32, step: draw, ..Key::new(1, purpose) };
    let updates = rsm.updates(&epoch(&advantages, &log_probs, &forks, &key));
    assert_eq!(updates.len(), 2);
    let mut seen = Vec::new();
    for points in &updates {
        let mut anchors = 0;
        let valid = points.iter().filter(|p| p.advantage != 0.0).count() as f64;
        for point in points {
            match rsm.balance(point.step) {
                Some(balance) => {
                    let fork = forks[point.image];
                    assert_eq!((point.step, point.log_prob_old), (fork.step, Some(point.image as f64)));
                    assert_eq!(point.noise, key(Purpose::ForkNoise, point.image, fork.draw()));
                    assert_eq!(balance, 2.0 / [2.0, 0.0, 1.0, 3.0][fork.step]);
                    let policy = if point.advantage == 0.0 { 0.0 } else { balance / valid };
                    assert_eq!(point.share.policy, policy);
                    seen.push(point.image);
                }
                None => {
                    assert_eq!((point.share.policy, point.advantage), (0.0, 0.0));
                    anchors += 1;
                }
            }
        }
        // Each update's weights of the divergence add up to the same, forks and anchors apart.
        let anchored: f64 = points.iter().filter(|p| rsm.balance(p.step).is_none()).map(|p| p.share.anchor).sum();
        assert!(anchors == 6 && (anchored - 2.0).abs() < 1e-12, "{anchors} {anchored}");
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..12).collect::<Vec<_>>());
}

#[test]
fn without_a_divergence_forks_that_teach_nothing_are_left_out() {
    let rsm = rsm(RsmLoss::Matching, Base, |keys| {
        keys.profile = Some(Profile::Counts(vec![2, 0, 2, 0, 0, 0, 0, 0, 0, 0]));
        keys.kl_weight = 0.0;
    });
    let forks = branch::forks(rsm.forks(), 2);
    let key = |purpose, image: usize, draw| Key { prompt: image as u32, step: draw, ..Key::new(1, purpose) };
    let advantages = [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0];
    let updates = rsm.updates(&epoch(&advantages, &[], &forks, &key));
    let mut images: Vec<usize> = updates.concat().iter().map(|p| p.image).collect();
    images.sort_unstable();
    assert_eq!((images, rsm.each(2)), (vec![0, 1, 6, 7], Each { images: 8, points: 8 }));
    assert_eq!(rsm.window(1, 1).unwrap().trained, [0, 1, 2], "a trunk goes as far as something leaves it");
}

#[test]
fn whole_trajectories_are_trained_on_at_all_steps_but_the_last() {
    let rsm = rsm(RsmLoss::Matching, Base, |keys| keys.sampler = RsmSampler::Default);
    assert_eq!((rsm.each(3), rsm.forks()), (Each { images: 3, points: 27 }, &[][..]));
    assert_eq!(rsm.window(1, 1), Some(Window::new(0..10, 0..9)));
    let key = |purpose, image: usize, draw| Key { prompt: image as u32, step: draw, ..Key::new(1, purpose) };
    let updates = rsm.updates(&epoch(&[1.0, -1.0], &[], &[], &key));
    assert_eq!(updates.iter().map(Vec::len).collect::<Vec<_>>(), [9, 9]);
    for point in updates.iter().flatten() {
        assert_eq!(point.noise, key(Purpose::SamplerNoise, point.image, point.step as u32));
        assert_eq!(point.share, Share { policy: 1.0 / 9.0, anchor: 1.0 / 9.0 });
    }
    // Of all rewards' scale, as Flow-GRPO's.
    let a = rsm.advantages(&[0.0, 1.0, 10.0, 14.0], &["a", "a", "b", "b"]);
    assert!((a.values[3] - 2.0 / (a.std + 1e-4)).abs() < 1e-12);
}

#[test]
fn the_loss_of_parts_adds_up_to_that_of_the_whole() {
    let rsm = rsm(RsmLoss::Matching, Fairclip2, |_| ());
    let close = Close::of(&rsm.steps);
    let (whole, dv) = close.evaluate(&rsm);
    let mut points = close.points.clone();
    rsm.weigh(&mut points);
    let mut sum = 0.0;
    for i in 0..4 {
        let rows: Vec<Tensor> = [Operand::Theta, Operand::VelocityOld, Operand::Noise, Operand::Reference]
            .map(|operand| close.operand(operand).slice(i..i + 1))
            .into();
        let of = |operand| match operand {
            Operand::Theta => &rows[0],
            Operand::VelocityOld => &rows[1],
            Operand::Noise => &rows[2],
            _ => &rows[3],
        };
        let (part, part_dv) = evaluate(&rsm, &points[i..i + 1], of, 4);
        sum += part.value;
        assert_eq!(bits(&part_dv), bits(&dv.slice(i..i + 1)));
    }
    assert!((sum - whole).abs() <= 1e-12 * whole);
}

#[test]
fn a_rollout_that_does_not_fit_is_refused() {
    let error = |change: fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        let made = Rsm::new(&RsmKeys::default(), &config, &Schedule::with_shift(3.0), 1024);
        format!("{:#}", made.err().unwrap())
    };
    let e = error(|c| c.rollout.sampler = Kind::Cps);
    assert_eq!(e, "rollout.sampler is 'cps', expected flow for 'rsm'");
    assert!(error(|c| c.rollout.noise_level = 0.0).contains("has nothing to compare"));
    assert!(error(|c| c.rollout.num_inference_steps = 1).contains("expected at least 2 for 'rsm'"));
    assert!(error(|c| c.rollout.num_inference_steps = 20).starts_with("rsm.profile 'lowsnr2' is for 10 steps"));
}
