//! Pointwise non-linearities (criterion's "elements" are numbers).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::ops::activation;

#[path = "shapes/mod.rs"]
mod shapes;
use shapes::{TOKENS, tensor};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("activation");
    for (name, b, n, d, _) in TOKENS {
        let mut x = tensor(&[b, n, 4 * d]);
        let (mut dy, input) = (x.clone(), x.clone());
        group.throughput(Throughput::Elements(x.len() as u64));
        group.bench_function(BenchmarkId::new("gelu_tanh", name), |bench| bench.iter(|| activation::gelu_tanh(&mut x)));
        group.bench_function(BenchmarkId::new("gelu_tanh_backward", name), |bench| {
            bench.iter(|| activation::gelu_tanh_backward(&mut dy, &input));
        });
        group.bench_function(BenchmarkId::new("silu", name), |bench| bench.iter(|| activation::silu(&mut x)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
