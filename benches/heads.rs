//! Split into heads with the q/k RMS norm, its backward, and the merge (criterion's "elements" are numbers moved).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::heads::{self, Part};

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("heads");
    for (name, b, n, d, h) in TOKENS {
        let (x, norm) = (filled(&[b, n, d]), filled(&[d / h]));
        let (mut split, part) = (filled(&[b, h, n, d / h]), Part { offset: 0, len: n });
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("split with norm", name), |bench| {
            bench.iter(|| heads::split_into(&mut split, &x, part, Some(&norm)));
        });
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| heads::backward(&split, part, &x, Some(&norm)));
        });
        group.bench_function(BenchmarkId::new("merge", name), |bench| bench.iter(|| heads::merge(&split, part)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
