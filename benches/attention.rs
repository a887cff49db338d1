//! Joint attention, forward and backward, in floating-point operations (criterion's "elements").

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::attention::{self, Mask};
use engine::ops::heads::Part;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, filled};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (name, b, n, d, h) in TOKENS {
        let [q, k, v] = [0; 3].map(|_| filled(&[b, h, n, d / h]));
        let scale = 1.0 / ((d / h) as f32).sqrt();
        let parts = [Part { offset: 0, len: n }];
        group.throughput(Throughput::Elements((4 * b * n * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| attention::forward(&q, &k, &v, scale, Mask::default()));
        });
        let (out, lse) = attention::forward_joint(&q, &k, &v, scale, &parts);
        let dout = filled(&[b, n, d]);
        group.throughput(Throughput::Elements((10 * b * n * n * d) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| attention::backward(&[&dout], &[&out[0]], &lse, (&q, &k, &v), scale, &parts));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
