//! Adaptive layer norm, forward and backward.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::adaln::{Chunk, backward, forward};

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("adaln");
    for (name, b, n, d, _) in TOKENS {
        let (x, modulation) = (filled(&[b, n, d]), filled(&[b, 6 * d]));
        let chunk = |index| Chunk { modulation: &modulation, index };
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| forward(&x, chunk(0), chunk(1)));
        });
        let (mut dx, dy) = (filled(&[b, n, d]), filled(&[b, n, d]));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| backward(&mut dx, &dy, &x, chunk(1)));
        });
    }
    group.finish();
}
