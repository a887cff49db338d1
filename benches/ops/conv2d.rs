//! 3x3 convolutions at the shapes of decoders, in floating-point operations.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::ops::conv2d::{Window, arranged, doubled, folded, forward};

use crate::shapes::filled;

pub fn bench(c: &mut Criterion) {
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
        let x = filled(&[batch, size, size, inputs]);
        let (w, bias) = (arranged(&filled(&[outputs, inputs, 3, 3])), filled(&[outputs]));
        let y = forward(&x, &w, &bias, window, None);
        group.throughput(Throughput::Elements((2 * y.len() * inputs * 9) as u64));
        let id = BenchmarkId::new(name, format!("{batch}x{inputs}to{outputs}x{size}x{size}"));
        group.bench_function(id, |bench| bench.iter(|| forward(&x, &w, &bias, window, None)));
    }
    // Counted as the convolution of the enlarged image would be.
    let (x, w, bias) = (filled(&[16, 32, 32, 32]), folded(&filled(&[32, 32, 3, 3])), filled(&[32]));
    group.throughput(Throughput::Elements(2 * 16 * 32 * 32 * 9 * 64 * 64));
    group.bench_function("doubled/16x32to32x32x32", |bench| bench.iter(|| doubled(&x, &w, &bias)));
    group.finish();
}
