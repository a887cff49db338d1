use super::super::Loss;
use super::super::testing::{check_golden, evaluate, golden, points};
use super::*;
use crate::config::raw::Prompts;
use crate::device::philox::Key;
use crate::device::{Device, Tensor};
use crate::ops::testing::{check_gradient, random, wide};

const STEPS: usize = 4;

fn method(change: impl FnOnce(&mut RsmFirstOrderKeys)) -> RsmFirstOrder {
    let mut keys = RsmFirstOrderKeys { reward_scale: 2.0, updates_per_epoch: 3, ..RsmFirstOrderKeys::default() };
    change(&mut keys);
    let prompts = Prompts { train: "".into(), eval: "".into(), max_sequence_length: 1 };
    let mut config = TrainConfig::minimal("".into(), prompts, Default::default());
    (config.rollout.num_inference_steps, config.rollout.guidance_scale) = (STEPS, 1.0);
    RsmFirstOrder::new(&keys, &config, &Schedule::with_shift(3.0), 1024).unwrap()
}

/// Loss and gradient at points of these velocities and gradients of the reward.
fn at(method: &RsmFirstOrder, points: &[Point], [theta, reference, gradient]: [&Tensor; 3]) -> (Loss, Tensor) {
    let of = |operand| match operand {
        Operand::Theta => theta,
        Operand::Reference => reference,
        Operand::RewardGradient => gradient,
        other => unreachable!("{other:?}"),
    };
    evaluate(method, points, of, points.len())
}

const TIMES: [f32; 4] = [1.0, 0.75, 0.5, 0.25];

#[test]
fn losses_and_gradients_are_the_golden_ones() {
    let tensor = |k: f64| {
        let values: Vec<f32> = golden(k).into_iter().map(|v| v as f32).collect();
        Tensor::from_slice(&Device::Cpu, &values, &[4, 8])
    };
    let [theta, reference, gradient] = [2.0, 3.0, 8.0].map(tensor);
    let check = |schedule, want| {
        let (loss, dv) =
            at(&method(|k| k.schedule = schedule), &points(&TIMES, &[0.0; 4]), [&theta, &reference, &gradient]);
        check_golden((loss.value, dv), want);
    };
    check(Slope::Linear, [1.92540792, -0.101887999, 0.0887107613, -0.0212125312]);
    check(Slope::Square, [1.7635787, -0.101887999, 0.100128914, -0.00266654301]);
}

/// §12: at the reference the loss is `η²κ²‖g‖²`, and without a gradient nothing is learnt there.
#[test]
fn at_the_reference_only_the_gradient_of_the_reward_is_left() {
    let (method, v, g) = (method(|_| ()), random(&[4, 32], 1), random(&[4, 32], 2));
    let (loss, _) = at(&method, &points(&TIMES, &[0.0; 4]), [&v, &v, &g]);
    let square = |row: usize| wide(&g)[row * 32..(row + 1) * 32].iter().map(|g| g * g).sum::<f64>() / 32.0;
    let want: f64 = (0..4).map(|i| (2.0 * f64::from(1.0 - TIMES[i])).powi(2) * square(i)).sum::<f64>() / 4.0;
    assert!((loss.value - want).abs() < 1e-12 * want, "{} {want}", loss.value);
    let none = Tensor::zeros(&Device::Cpu, &[4, 32]);
    let (loss, dv) = at(&method, &points(&TIMES, &[0.0; 4]), [&v, &v, &none]);
    assert_eq!((loss.value, dv.to_host()), (0.0, vec![0.0; 128]));
}

/// §12: with `r = −½‖x‖²`, whose gradient is `−x`, the velocity gains `+ηκx`, so that `x0 = x − t·v` shrinks.
#[test]
fn the_velocity_that_is_matched_leads_up_the_reward() {
    let (method, v, x) = (method(|_| ()), random(&[4, 32], 1), random(&[4, 32], 2));
    let gradient: Vec<f32> = x.host().iter().map(|x| -x).collect();
    let gradient = Tensor::from_slice(&Device::Cpu, &gradient, &[4, 32]);
    let mut theta = v.to_host();
    for (i, v) in theta.iter_mut().enumerate() {
        *v += 2.0 * (1.0 - TIMES[i / 32]) * x.host()[i];
    }
    let matched = Tensor::from_slice(&Device::Cpu, &theta, &[4, 32]);
    let (loss, _) = at(&method, &points(&TIMES, &[0.0; 4]), [&matched, &v, &gradient]);
    // Rounding of `v + ηκx` in f32.
    assert!(loss.value < 1e-12, "{}", loss.value);
    let (_, start) = at(&method, &points(&TIMES, &[0.0; 4]), [&v, &v, &gradient]);
    // Descent goes towards `+x`.
    assert!(start.to_host().iter().zip(x.host()).skip(32).all(|(d, x)| d * x < 0.0));
}

#[test]
fn the_gradient_matches_finite_differences_of_the_published_form() {
    let (method, [theta, reference, g]) = (method(|_| ()), [1, 2, 3].map(|seed| random(&[3, 32], seed)));
    let mut points = points(&[0.9, 0.5, 0.1], &[0.0; 3]);
    points[1].gradient_scale = 0.25;
    let (loss, dv) = at(&method, &points, [&theta, &reference, &g]);
    let (reference, g) = (wide(&reference), wide(&g));
    let of = |v: &[f64]| {
        let element = |i: usize| {
            let point = &points[i / 32];
            let e = 2.0 * (1.0 - f64::from(point.t)) * point.gradient_scale;
            (v[i] - (reference[i] - e * g[i])).powi(2)
        };
        vec![(0..96).map(element).sum::<f64>() / 96.0]
    };
    assert!((loss.value - of(&wide(&theta))[0]).abs() < 1e-6 * loss.value);
    check_gradient(&dv, &wide(&theta), &Tensor::from_slice(&Device::Cpu, &[1.0], &[1]), of);
    assert_eq!(loss.clipped, 1);
}

fn updates(method: &RsmFirstOrder, norms: &[f64]) -> Vec<Vec<Point>> {
    updates_of(method, norms.len(), norms)
}

/// Of so many images, whose gradients have these lengths.
fn updates_of(method: &RsmFirstOrder, images: usize, norms: &[f64]) -> Vec<Vec<Point>> {
    let key = |purpose, image: usize, draw| Key { prompt: image as u32, step: draw, ..Key::new(1, purpose) };
    method.updates(&Scored {
        advantages: &vec![0.0; images],
        key: &key,
        steps: &[0, 1, 2, 3],
        log_probs: &[],
        gradient_norms: norms,
        forks: &[],
        groups: &[],
    })
}

#[test]
fn every_image_is_trained_on_once_at_every_step_in_an_order_of_the_epoch_s_own() {
    let method = method(|_| ());
    let all = updates(&method, &[0.5; 5]).concat();
    let steps: Vec<(usize, usize)> = all.iter().map(|p| (p.image, p.step)).collect();
    let mut sorted = steps.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..5).flat_map(|i| (0..STEPS).map(move |s| (i, s))).collect::<Vec<_>>());
    assert_ne!(sorted, steps);
    assert!(all.iter().all(|p| p.t == method.sigmas[p.step] && p.gradient_scale == 1.0));
}

/// §12: per-sample norms are clipped by a threshold that is 1 at the start of each epoch and then the 0.8-quantile of recent ones.
#[test]
fn gradients_are_clipped_by_one_and_then_by_the_quantile_of_the_update_before() {
    let norms = [0.5, 2.0, 4.0, 8.0, 16.0, 0.0];
    let all = updates(&method(|_| ()), &norms);
    let mut threshold = 1.0;
    for points in &all {
        for point in points {
            let norm = norms[point.image];
            let want = if norm > threshold { threshold / norm } else { 1.0 };
            assert_eq!(point.gradient_scale, want, "norm {norm}, threshold {threshold}");
        }
        threshold = quantile(points.iter().map(|p| norms[p.image]).collect(), 0.8);
    }
    assert_eq!(all.len(), 3);
    assert!(all[0].iter().any(|p| p.gradient_scale < 1.0));
    // A gradient of each step is clipped by its own length.
    let of_steps: Vec<f64> = (0..24).map(|i| f64::from(i) / 4.0).collect();
    let own = updates_of(&method(|_| ()), 6, &of_steps);
    for point in &own[0] {
        let norm = of_steps[point.step * 6 + point.image];
        assert_eq!(point.gradient_scale, if norm > 1.0 { 1.0 / norm } else { 1.0 }, "{norm}");
    }
    let free = updates(&method(|k| k.gradient_clip = 0.0), &norms).concat();
    assert!(free.iter().all(|p| p.gradient_scale == 1.0));
    assert_eq!(quantile(vec![3.0, 1.0, 2.0, 5.0], 0.8), 3.0 + 2.0 * (0.8 * 3.0 - 2.0));
    assert_eq!(quantile(vec![7.0], 0.8), 7.0);
}
