//! Adaptive layer norm, forward and backward (criterion's "elements" are numbers normalised).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::adaln;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("adaln");
    for (name, b, n, d, _) in TOKENS {
        let (x, modulation) = (filled(&[b, n, d]), filled(&[b, 6 * d]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| adaln::forward(&x, &modulation, 0, 1));
        });
        let (mut dx, dy) = (filled(&[b, n, d]), filled(&[b, n, d]));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| adaln::backward(&mut dx, &dy, &x, &modulation, 1));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
