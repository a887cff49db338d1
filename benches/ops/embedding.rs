//! Rows of a table, by index.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::embedding::forward;

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("embedding");
    for (name, b, n, d, _) in TOKENS {
        let table = filled(&[512, d]);
        let ids: Vec<u32> = (0..b * n).map(|i| (i * 31 % 512) as u32).collect();
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| forward(&ids, &table)));
    }
    group.finish();
}
