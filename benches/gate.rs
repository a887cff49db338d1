//! The gated residual, forward and backward (criterion's "elements" are numbers gated).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::gate;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("gate");
    for (name, b, n, d, _) in TOKENS {
        let (mut x, y, modulation) = (filled(&[b, n, d]), filled(&[b, n, d]), filled(&[b, 6 * d]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| gate::forward(&mut x, &y, &modulation, 2));
        });
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| gate::backward(&y, &modulation, 2));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
