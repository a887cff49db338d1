//! A sampler's step with guidance: deterministic, and with noise; and a training point's noising.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::device::philox::Purpose;
use engine::ops::noising;
use engine::ops::step::{Inputs, Row, forward};
use engine::rollout::image_keys;

use crate::shapes::{LATENTS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    for (name, b, side) in LATENTS {
        let (x, velocity, keys) = (
            filled(&[b, 16, side, side]),
            filled(&[2 * b, 16, side, side]),
            image_keys(0, Purpose::InitialLatent, 0, b),
        );
        let inputs = Inputs { x: &x, velocity: &velocity, guidance: Some(4.5), history: [None; 2], noise: &keys };
        let row = Row { a: 1.0, b: -0.05, ..Row::default() };
        group.throughput(Throughput::Elements(x.len() as u64));
        group.bench_function(BenchmarkId::new("ode", name), |bench| bench.iter(|| forward(inputs, row)));
        group.bench_function(BenchmarkId::new("sde", name), |bench| {
            bench.iter(|| forward(inputs, Row { s: 0.1, ..row }))
        });
        let t = vec![0.3; b];
        group.bench_function(BenchmarkId::new("noising", name), |bench| bench.iter(|| noising::forward(&x, &x, &t)));
    }
    group.finish();
}
