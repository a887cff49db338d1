//! Layer normalisation.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::layer_norm::forward;

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer_norm");
    for (name, b, n, d, _) in TOKENS {
        let (x, w) = (filled(&[b, n, d]), filled(&[d]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| forward(&x, &w, &w, 1e-6)));
    }
    group.finish();
}
