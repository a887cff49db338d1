//! Root-mean-square normalisation (criterion's "elements" are numbers normalised).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::rms_norm;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("rms_norm");
    for (name, b, n, d, _) in TOKENS {
        let (x, w) = (filled(&[b, n, d]), filled(&[d]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| rms_norm::forward(&x, &w, 1e-6)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
