//! Rows of a table, by index (criterion's "elements" are numbers gathered).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::embedding;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("embedding");
    for (name, b, n, d, _) in TOKENS {
        let table = filled(&[512, d]);
        let ids: Vec<u32> = (0..b * n).map(|i| (i * 31 % 512) as u32).collect();
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group
            .bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| embedding::forward(&ids, &table)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
