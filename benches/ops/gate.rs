//! The backward of the gated residual.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::adaln::Chunk;
use engine::ops::gate::backward;

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("gate");
    for (name, b, n, d, _) in TOKENS {
        let (dx, modulation) = (filled(&[b, n, d]), filled(&[b, 6 * d]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| backward(&dx, Chunk { modulation: &modulation, index: 2 }));
        });
    }
    group.finish();
}
