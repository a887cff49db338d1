//! Group normalisation with SiLU at the shapes of decoders.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::group_norm::{Norm, forward};

use crate::shapes::filled;

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("group_norm");
    for (batch, channels, groups, size) in [(16, 16, 8, 64), (16, 48, 8, 16), (1, 512, 32, 64), (1, 128, 32, 256)] {
        let x = filled(&[batch, size, size, channels]);
        let (weight, bias) = (filled(&[channels]), filled(&[channels]));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        group.throughput(Throughput::Elements(x.len() as u64));
        for (name, silu) in [("plain", false), ("silu", true)] {
            let id = BenchmarkId::new(name, format!("{batch}x{channels}x{size}x{size}"));
            group.bench_function(id, |bench| bench.iter(|| forward(&x, norm, silu)));
        }
    }
    group.finish();
}
