//! Matrix products at the shapes of the models, in floating-point operations.

use criterion::{BenchmarkId, Criterion, Throughput};
use engine::device::Elems;
use engine::ops::cpu::gemm::{Epilogue, Mat, matmul};
use half::{bf16, f16};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    for (m, n, k) in [(2560, 128, 128), (2560, 512, 128), (461, 1536, 1536), (461, 6144, 1536)] {
        let a = vec![0.5f32; m * k];
        let b = vec![0.25f32; n * k];
        let b16 = vec![bf16::from_f32(0.25); n * k];
        let half = vec![f16::from_f32(0.25); n * k];
        let mut out = vec![0.0; m * n];
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        for (name, data) in [("f32", Elems::F32(&b)), ("bf16", Elems::Bf16(&b16)), ("f16", Elems::F16(&half))] {
            group.bench_function(BenchmarkId::new(name, format!("{m}x{n}x{k}")), |bench| {
                bench.iter(|| {
                    matmul(&mut out, n, Mat::new(&a, m, k), Mat::strided(data, n, k, k).t(), Epilogue::default())
                });
            });
        }
    }
    group.finish();
}
