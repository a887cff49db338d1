//! Layers with a LoRA of rank 32 and what follows them, forward and backward, in floating-point operations.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::device::Tensor;
use engine::ops::activation::Activation;
use engine::ops::adaln::Chunk;
use engine::ops::linear::{Adapted, InputGrad, Layer, Lora, LoraGrad, Then, backward, forward, forward_each};

use crate::shapes::{TOKENS, filled};

const RANK: usize = 32;

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (name, b, n, d, _) in TOKENS {
        let (x, w, bias, modulation) = (filled(&[b, n, d]), filled(&[d, d]), filled(&[d]), filled(&[b, 6 * d]));
        let lora = Lora { samples: 0..b, a: filled(&[RANK, d]), b: filled(&[d, RANK]), scale: 2.0 };
        let layer = Layer { weight: &w, bias: Some(&bias) };
        let adapted = Adapted { layer, lora: std::slice::from_ref(&lora) };
        let (base, low) = (2 * b * n * d * d, 4 * b * n * d * RANK);
        group.throughput(Throughput::Elements((base + low) as u64));
        group.bench_function(BenchmarkId::new("forward", name), |bench| {
            bench.iter(|| forward(&x, adapted, Then::Nothing));
        });
        let gate = Chunk { modulation: &modulation, index: 2 };
        group.bench_function(BenchmarkId::new("forward and gated residual", name), |bench| {
            bench.iter(|| forward(&x, adapted, Then::AddGated { residual: &x, gate }));
        });
        group.throughput(Throughput::Elements(3 * (base + low) as u64));
        group.bench_function(BenchmarkId::new("forward of three", name), |bench| {
            bench.iter(|| forward_each(&x, [adapted; 3]));
        });
        let wide = filled(&[4 * d, d]);
        group.throughput(Throughput::Elements(4 * base as u64));
        group.bench_function(BenchmarkId::new("forward and gelu", name), |bench| {
            let layer = Layer { weight: &wide, bias: None };
            bench.iter(|| forward(&x, layer, Then::Activate(Activation::GeluTanh)));
        });
        let (mut flat, mut dx) = (filled(&[2 * RANK * d]), Tensor::zeros(&x.device(), x.shape()));
        group.throughput(Throughput::Elements((base + 3 * low) as u64));
        group.bench_function(BenchmarkId::new("backward", name), |bench| {
            bench.iter(|| {
                let grad = Some(LoraGrad { flat: &mut flat, a: 0, b: RANK * d });
                backward(&x, &w, Some(&x), Some(&lora), grad, InputGrad::Overwrite(&mut dx));
            });
        });
    }
    group.finish();
}
