//! What the tests of all algorithms share: points, tensors for their operands, and the specification's golden ones.

use std::sync::Arc;

use super::steps::Steps;
use super::{Algorithm, Loss, Operand, Point, Scored, compare, gradient};
use crate::device::philox::Key;
use crate::device::{Device, Tensor};
use crate::models::lora::{AdapterBank, Layout, Module, Slot};
use crate::ops::testing::random;

/// The tensors of some points.
pub struct Operands {
    pub theta: Tensor,
    pub reference: Tensor,
    pub old: Tensor,
    pub noise: Tensor,
    pub x0: Tensor,
}

impl Operands {
    /// Random ones of `rows` points with `per` elements.
    pub fn random(rows: usize, per: usize) -> Self {
        let [theta, reference, old, noise, x0] = [1, 2, 3, 4, 5].map(|seed| random(&[rows, per], seed));
        Self { theta, reference, old, noise, x0 }
    }

    /// Those that the specification's golden losses are of (`losses.md` §6.2): 4 rows of 8.
    pub fn golden() -> Self {
        let tensor = |k: f64| {
            let values: Vec<f32> = golden(k).into_iter().map(|v| v as f32).collect();
            Tensor::from_slice(&Device::Cpu, &values, &[4, 8])
        };
        Self { x0: tensor(0.0), noise: tensor(1.0), theta: tensor(2.0), reference: tensor(3.0), old: tensor(4.0) }
    }

    /// Some of the rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let cut = |t: &Tensor| t.slice(rows.clone());
        let Self { theta, reference, old, noise, x0 } = self;
        Self { theta: cut(theta), reference: cut(reference), old: cut(old), noise: cut(noise), x0: cut(x0) }
    }

    /// That of a difference.
    pub fn operand(&self, operand: Operand) -> &Tensor {
        match operand {
            Operand::Theta => &self.theta,
            Operand::Reference => &self.reference,
            Operand::Old => &self.old,
            Operand::Noise => &self.noise,
            Operand::X0 => &self.x0,
            _ => unreachable!("of methods that are trained on steps"),
        }
    }

    /// Loss and gradient of `points`, which are some of `total`.
    pub fn evaluate(&self, algorithm: &dyn Algorithm, points: &[Point], total: usize) -> (f64, Tensor) {
        let (loss, dv) = evaluate(algorithm, points, |of| self.operand(of), total);
        (loss.value, dv)
    }
}

/// Loss and gradient of `points`, which are some of `total`.
pub fn evaluate<'a>(
    algorithm: &dyn Algorithm,
    points: &[Point],
    operand: impl Fn(Operand) -> &'a Tensor + Copy,
    total: usize,
) -> (Loss, Tensor) {
    let loss = algorithm.loss(points, &compare(algorithm, points, operand), total);
    let dv = gradient(algorithm, points, operand, &loss, 1.0);
    (loss, dv)
}

/// Makes the points of each run of `length` ones that are seen together.
pub fn together(mut points: Vec<Point>, length: usize) -> Vec<Point> {
    points.iter_mut().enumerate().for_each(|(i, point)| point.together = Some(i / length));
    points
}

/// A bank with these slots, all different, of the factors of two modules.
pub fn bank(slots: &[Slot]) -> AdapterBank {
    let module = |name: &str| Module { name: name.into(), inputs: 5, outputs: 4, trainable: true };
    let modules = ["a", "b"].map(module);
    let layout = Layout::selected(&modules, &[true; 2], 3);
    let mut bank = AdapterBank::new(Arc::new(layout), 1.0);
    for (seed, slot) in slots.iter().enumerate() {
        let numbers = random(&[bank.layout().len()], 1 + seed as u64);
        bank.set(*slot, numbers);
    }
    bank
}

/// The points of an epoch of images with these `advantages` in these `groups`.
pub fn epoch(algorithm: &dyn Algorithm, advantages: &[f64], groups: &[usize]) -> Vec<Vec<Point>> {
    let key = |purpose, image: usize, draw| Key { prompt: image as u32, step: draw, ..Key::new(1, purpose) };
    algorithm.updates(&Scored {
        advantages,
        groups,
        key: &key,
        steps: &[],
        log_probs: &[],
        gradient_norms: &[],
        forks: &[],
    })
}

/// The specification's steps of a rollout: the trained policy near the one that sampled, `θ ← old + 0.05·θ`.
pub struct Close {
    pub x: Tensor,
    pub next: Tensor,
    pub noise: Tensor,
    pub theta: Tensor,
    pub reference: Tensor,
    pub old: Tensor,
    pub mean_old: Tensor,
    pub points: Vec<Point>,
}

impl Close {
    const STEPS: [usize; 4] = [0, 3, 5, 8];

    /// At `steps` of ten.
    pub fn of(steps: &Steps) -> Self {
        let number = |k: usize| -> Vec<f64> { golden(k as f64) };
        let [noise, theta, reference, old, x] = [1, 2, 3, 4, 5].map(number);
        let tensor = |f: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..32).map(|i| f(i) as f32).collect();
            Tensor::from_slice(&Device::Cpu, &values, &[4, 8])
        };
        let at = |i: usize| steps.at(Self::STEPS[i / 8]);
        let mean = |i: usize| at(i).a * x[i] + at(i).b * old[i];
        let mut points = points(&[0.0; 4], &[1.0, -2.0, 0.0, 7.0]);
        for (i, (point, less)) in points.iter_mut().zip([-0.1, 0.01, 0.0, 0.1]).enumerate() {
            point.step = Self::STEPS[i];
            let row = i * 8..(i + 1) * 8;
            let square = row.map(|j| (at(j).s * noise[j]).powi(2)).sum::<f64>() / 8.0;
            point.log_prob_old = Some(steps.log_prob(point.step).of(square) + less);
        }
        Self {
            x: tensor(&|i| x[i]),
            next: tensor(&|i| mean(i) + at(i).s * noise[i]),
            noise: tensor(&|i| noise[i]),
            theta: tensor(&|i| old[i] + 0.05 * theta[i]),
            reference: tensor(&|i| reference[i]),
            old: tensor(&|i| old[i]),
            mean_old: tensor(&mean),
            points,
        }
    }

    /// The tensor of an operand.
    pub fn operand(&self, operand: Operand) -> &Tensor {
        match operand {
            Operand::X => &self.x,
            Operand::Next => &self.next,
            Operand::Noise => &self.noise,
            Operand::Theta => &self.theta,
            Operand::Reference => &self.reference,
            Operand::VelocityOld => &self.old,
            Operand::MeanOld => &self.mean_old,
            _ => unreachable!("of methods that are trained on clean latents"),
        }
    }

    /// Loss and gradient of all points.
    pub fn evaluate(&self, algorithm: &dyn Algorithm) -> (f64, Tensor) {
        let mut points = self.points.clone();
        algorithm.weigh(&mut points);
        let (loss, dv) = evaluate(algorithm, &points, |operand| self.operand(operand), 4);
        (loss.value, dv)
    }
}

/// The numbers of the specification's tensor `k`: 4 rows of 8.
pub fn golden(k: f64) -> Vec<f64> {
    let number = |row: usize, j: usize| (1.0 + 2.3 * k + 3.1 * row as f64 + (0.7 + 0.37 * k) * j as f64).sin();
    (0..32).map(|i| number(i / 8, i % 8)).collect()
}

/// Points of these times and advantages.
pub fn points(times: &[f32], advantages: &[f64]) -> Vec<Point> {
    let pairs = times.iter().zip(advantages).enumerate();
    pairs.map(|(image, (t, advantage))| Point::new(image, *t, *advantage)).collect()
}

/// Holds loss and gradient against a line of the specification's table: the loss and the gradient at (0,0), (1,0), (3,7).
pub fn check_golden(found: (f64, Tensor), want: [f64; 4]) {
    check_golden_of(found, want, 1e-3);
}

/// The same where the gradient is made of terms of size `terms`, which may cancel.
pub fn check_golden_of((loss, dv): (f64, Tensor), want: [f64; 4], terms: f64) {
    let dv = dv.to_host();
    let found = [loss, dv[0].into(), dv[8].into(), dv[31].into()];
    for (found, want) in found.into_iter().zip(want) {
        // The specification's inputs are f64.
        assert!((found - want).abs() <= 2e-6 * want.abs().max(terms), "{found} {want}");
    }
}
