//! Latents to tokens and back.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::patchify::{Order, Patches, forward, inverse};

use crate::shapes::filled;

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("patchify");
    for (name, b, side) in [("tiny", 32, 4), ("sd3.5", 1, 32)] {
        let patches = Patches { channels: 16, size: 2, grid: (side, side) };
        let latent = filled(&[b, 16, 2 * side, 2 * side]);
        let tokens = forward(&latent, &patches, Order::ChannelLast);
        group.throughput(Throughput::Elements(latent.len() as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| forward(&latent, &patches, Order::ChannelFirst));
        });
        group.bench_function(BenchmarkId::new("inverse", name), |bench| {
            bench.iter(|| inverse(&tokens, &patches, Order::ChannelLast));
        });
    }
    group.finish();
}
