//! Normal numbers of keyed streams.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::device::Device;
use engine::device::philox::Purpose;
use engine::ops::noise::normal;
use engine::rollout::image_keys;

use crate::shapes::LATENTS;

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("noise");
    for (name, b, side) in LATENTS {
        let (keys, shape) = (image_keys(0, Purpose::InitialLatent, 0, b), [b, 16, side, side]);
        group.throughput(Throughput::Elements(shape.iter().product::<usize>() as u64));
        group.bench_function(BenchmarkId::new("normal", name), |bench| {
            bench.iter(|| normal(&Device::Cpu, &keys, &shape));
        });
    }
    group.finish();
}
