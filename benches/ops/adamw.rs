//! An optimiser step and a moving average over flat buffers of the size of a LoRA.

use criterion::{Criterion, Throughput};
use engine::ops::adamw::{AdamW, Moments, step};
use engine::ops::{lerp, norm};

use crate::shapes::filled;

/// SD3.5 Medium's LoRA of rank 32 on all attention layers, about.
const NUMBERS: usize = 18_000_000;

pub fn bench(c: &mut Criterion) {
    let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.99, weight_decay: 0.01, eps: 1e-8 };
    let (mut params, grads) = (filled(&[NUMBERS]), filled(&[NUMBERS]));
    let mut moments = Moments::zeros_like(&params);
    let mut group = c.benchmark_group("flat");
    group.throughput(Throughput::Elements(NUMBERS as u64));
    group.bench_function("adamw", |b| b.iter(|| step(&settings, &mut params, &grads, 0.5, &mut moments)));
    group.bench_function("lerp", |b| b.iter(|| lerp::forward(&mut params, &grads, 0.9)));
    group.bench_function("norm", |b| b.iter(|| norm::sum_of_squares(&grads)));
    group.finish();
}
