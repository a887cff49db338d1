//! What an algorithm needs of its velocities, and the gradient it makes of that: RAM's two differences.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::combine;
use engine::ops::products::{Difference, Weights, forward};

use crate::shapes::{LATENTS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("loss");
    for (name, b, side) in LATENTS {
        let [theta, reference, old, noise, x0] = [0; 5].map(|_| filled(&[b, 16, side, side]));
        let (plus, minus) = (Weights::All(1.0), Weights::All(-1.0));
        let differences = [
            Difference { terms: vec![(plus, &theta), (minus, &reference)] },
            Difference { terms: vec![(plus, &noise), (minus, &x0), (minus, &old)] },
        ];
        let coefficients = [vec![0.5; b], vec![-0.1; b]];
        group.throughput(Throughput::Elements(theta.len() as u64));
        group.bench_function(BenchmarkId::new("products", name), |bench| bench.iter(|| forward(&differences)));
        group.bench_function(BenchmarkId::new("combine", name), |bench| {
            bench.iter(|| combine::forward(&differences, &coefficients));
        });
    }
    group.finish();
}
