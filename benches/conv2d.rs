//! 3x3 convolutions at the shapes of decoders, in GFLOP/s (criterion's "elements" are floating-point operations).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::device::{Tensor, Weight};
use engine::ops::conv2d::{Window, doubled, forward};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv2d");
    let same = Window::same(3);
    for (name, batch, inputs, outputs, size, window) in [
        ("same", 16, 16, 16, 64, same),
        ("same", 16, 32, 32, 32, same),
        ("same", 16, 48, 48, 16, same),
        ("same", 16, 48, 48, 8, same),
        ("same", 16, 16, 3, 64, same),
        ("halving", 16, 16, 16, 64, Window::halving()),
        ("same", 1, 512, 512, 64, same),
        ("same", 1, 128, 128, 256, same),
    ] {
        let x = Tensor::zeros(&[batch, inputs, size, size]);
        let w = Weight::owned(vec![0.01; outputs * inputs * 9], vec![outputs, inputs, 3, 3]);
        let y = forward(&x, &w, None, window, None);
        group.throughput(Throughput::Elements((2 * y.len() * inputs * 9) as u64));
        let id = BenchmarkId::new(name, format!("{batch}x{inputs}to{outputs}x{size}x{size}"));
        group.bench_function(id, |bench| bench.iter(|| forward(&x, &w, None, window, None)));
    }
    // Counted as the convolution of the enlarged image would be.
    let (x, w) = (Tensor::zeros(&[16, 32, 32, 32]), Weight::owned(vec![0.01; 32 * 32 * 9], vec![32, 32, 3, 3]));
    group.throughput(Throughput::Elements(2 * 16 * 32 * 32 * 9 * 64 * 64));
    group.bench_function("doubled/16x32to32x32x32", |bench| bench.iter(|| doubled(&x, &w, None)));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
