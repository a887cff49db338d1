//! Group normalisation with SiLU at the shapes of decoders (criterion's "elements" are numbers normalised).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::device::{Tensor, Weight};
use engine::ops::group_norm::{Norm, forward};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("group_norm");
    for (batch, channels, groups, size) in [(16, 16, 8, 64), (16, 48, 8, 16), (1, 512, 32, 64), (1, 128, 32, 256)] {
        let x = Tensor::zeros(&[batch, channels, size, size]);
        let [weight, bias] = [1.0, 0.5].map(|v| Weight::owned(vec![v; channels], vec![channels]));
        let norm = Norm { weight: &weight, bias: &bias, groups, eps: 1e-6 };
        group.throughput(Throughput::Elements(x.len() as u64));
        for (name, silu) in [("plain", false), ("silu", true)] {
            let id = BenchmarkId::new(name, format!("{batch}x{channels}x{size}x{size}"));
            group.bench_function(id, |bench| bench.iter(|| forward(&x, norm, silu)));
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
