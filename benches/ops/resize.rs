//! A batch of decoded pictures on its way to a CLIP, in pictures.

use criterion::{Criterion, Throughput};
use engine::ops::{normalise, quantise, resize};

use crate::shapes::filled;

pub fn bench(c: &mut Criterion) {
    let decoded = filled(&[4, 512, 512, 3]);
    let bytes = quantise::forward(&decoded);
    let small = resize::bicubic(&bytes, 224, 224);
    let mut group = c.benchmark_group("pictures");
    group.throughput(Throughput::Elements(4));
    group.bench_function("quantise/512", |b| b.iter(|| quantise::forward(&decoded)));
    group.bench_function("resize/512 to 224", |b| b.iter(|| resize::bicubic(&bytes, 224, 224)));
    group.bench_function("normalise/224", |b| {
        b.iter(|| normalise::forward(&small, [0, 0], [224, 224], [0.5; 3], [0.25; 3]));
    });
    group.finish();
}
