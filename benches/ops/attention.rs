//! Attention, forward and backward, in floating-point operations.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::device::DType;
use engine::ops::attention::{Heads, Mask, OutputGrad, Part, backward, forward};

use crate::shapes::{TOKENS, filled};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (name, b, n, d, heads) in TOKENS {
        let [q, k, v, dout] = [0; 4].map(|_| filled(&[b, n, d]));
        let scale = 1.0 / ((d / heads) as f32).sqrt();
        let heads = Heads { count: heads, scale, compute: DType::F32 };
        let parts = [Part { q: &q, k: &k, v: &v }];
        group.throughput(Throughput::Elements((4 * b * n * n * d) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| forward(&parts, heads, Mask::default()));
        });
        let done = forward(&parts, heads, Mask::default());
        let outputs = [Some(OutputGrad { out: &done.out[0], dout: &dout })];
        group.throughput(Throughput::Elements((10 * b * n * n * d) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| backward(&outputs, &done.lse, &parts, heads));
        });
    }
    group.finish();
}
