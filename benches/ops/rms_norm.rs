//! Root-mean-square normalisation of tokens, and of heads with its backward.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use engine::ops::copy;
use engine::ops::rms_norm::{backward, forward, forward_in_place, room_for_inverse};

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("rms_norm");
    for (name, b, n, d, heads) in TOKENS {
        let (x, w, head) = (filled(&[b, n, d]), filled(&[d]), filled(&[d / heads]));
        group.throughput(Throughput::Elements((b * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| bench.iter(|| forward(&x, &w, 1e-6)));
        group.bench_function(BenchmarkId::new("forward of heads", name), |bench| {
            bench.iter(|| forward(&x, &head, 1e-6));
        });
        let mut inverse = room_for_inverse(&x, &head);
        forward_in_place(&mut copy::owned(&x), &head, 1e-6, Some(&mut inverse));
        group.bench_function(BenchmarkId::new("backward of heads", name), |bench| {
            bench.iter_batched_ref(|| copy::owned(&x), |d| backward(d, &x, &head, &inverse), BatchSize::LargeInput);
        });
    }
    group.finish();
}
